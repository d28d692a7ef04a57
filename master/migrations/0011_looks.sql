-- When GitHub was looked at, by repository, and what that made good.
CREATE TABLE looks (
    repository  TEXT   NOT NULL PRIMARY KEY,
    -- The beginning of the last look.
    began_at    BIGINT NOT NULL,
    -- The beginning of the last one that was complete.
    complete_at BIGINT,
    -- Why the last one was not complete.
    trouble     TEXT,
    -- Builds, cancellations and statuses of all looks.
    made_good   BIGINT NOT NULL
);

-- GitHub's logs of deliveries, by the hook that they are of.
CREATE TABLE delivery_logs (
    name    TEXT   NOT NULL PRIMARY KEY,
    -- When it was last read to its end.
    read_at BIGINT,
    -- Events that GitHub could not deliver and that were fetched from it, of all times.
    fetched BIGINT NOT NULL
);
