-- An operator's wish that no more jobs start: one row while it is on.
CREATE TABLE drain (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    since    BIGINT  NOT NULL,
    -- The master ends once nothing runs.
    stops    BOOLEAN NOT NULL
);
