-- What was seen of an attempt's machine on its way up: JSON, see model/boot.rs.
ALTER TABLE attempts ADD COLUMN boot TEXT;

-- What is kept of a machine that failed us, as long as the log of its job is.
CREATE TABLE evidence (
    attempt    BIGINT PRIMARY KEY REFERENCES attempts (id),
    qemu_log   TEXT,
    -- A PNG.
    screenshot BLOB
);

-- Platforms whose last boot failed, see model/service.rs. Names, not folders: one that is gone keeps its row.
CREATE TABLE platform_boots (
    platform       TEXT   PRIMARY KEY,
    -- So many in a row.
    failures       BIGINT NOT NULL,
    -- How the last one ended.
    why            TEXT   NOT NULL,
    -- A hash of what the platform's files were then.
    files          TEXT   NOT NULL,
    -- Since then it takes no job, and canary boots are tried; NULL while it is in service.
    out_since      BIGINT,
    canaries       BIGINT NOT NULL DEFAULT 0,
    next_canary_at BIGINT
);
