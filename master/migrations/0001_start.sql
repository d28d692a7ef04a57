-- Times are milliseconds since 1970-01-01 UTC. Enumerations are stored by their name.

CREATE TABLE deliveries (
    id          INTEGER PRIMARY KEY,
    guid        TEXT    NOT NULL UNIQUE,
    event       TEXT    NOT NULL,
    body        BLOB    NOT NULL,
    body_sha256 TEXT    NOT NULL,
    received_at BIGINT  NOT NULL,
    -- stored | done | failed
    state       TEXT    NOT NULL DEFAULT 'stored',
    tries       BIGINT  NOT NULL DEFAULT 0,
    -- Not tried before this time: the pause after a try that failed.
    not_before  BIGINT  NOT NULL DEFAULT 0,
    -- What became of it, in a sentence.
    outcome     TEXT
);
CREATE INDEX deliveries_by_state ON deliveries (state, id);

CREATE TABLE builds (
    id             INTEGER PRIMARY KEY,
    repository     TEXT    NOT NULL,
    trigger_name   TEXT    NOT NULL,
    -- Two events that mean the same build share it.
    build_key      TEXT    NOT NULL,
    reference      TEXT    NOT NULL,
    pull_request   BIGINT,
    base_ref       TEXT,
    head_sha       TEXT    NOT NULL,
    from_fork      BOOLEAN NOT NULL,
    publish        BOOLEAN NOT NULL,
    title          TEXT    NOT NULL,
    author         TEXT,
    event_at       BIGINT,
    before_sha     TEXT,
    -- JSON list of names.
    only_platforms TEXT    NOT NULL,
    -- preparing | running | finished
    state          TEXT    NOT NULL,
    base_sha       TEXT,
    tested_sha     TEXT,
    changed_files  TEXT,
    reason         TEXT,
    message        TEXT,
    -- Tries of the preparation that failed through our fault.
    tries          BIGINT  NOT NULL DEFAULT 0,
    not_before     BIGINT  NOT NULL DEFAULT 0,
    created_at     BIGINT  NOT NULL,
    finished_at    BIGINT,
    UNIQUE (repository, build_key)
);
CREATE INDEX builds_by_state ON builds (state, id);
CREATE INDEX builds_by_pull_request ON builds (repository, pull_request, id);

CREATE TABLE jobs (
    id             INTEGER PRIMARY KEY,
    build          BIGINT  NOT NULL REFERENCES builds (id),
    repository     TEXT    NOT NULL,
    suite          TEXT    NOT NULL,
    platform       TEXT    NOT NULL,
    -- JSON, see model/plan.rs.
    plan           TEXT    NOT NULL,
    priority       BIGINT  NOT NULL,
    -- queued | running | finished
    state          TEXT    NOT NULL,
    attempts       BIGINT  NOT NULL DEFAULT 0,
    attempt        BIGINT,
    cancel_reason  TEXT,
    cancel_message TEXT,
    reason         TEXT,
    message        TEXT,
    queued_at      BIGINT  NOT NULL,
    not_before     BIGINT  NOT NULL,
    started_at     BIGINT,
    finished_at    BIGINT,
    -- Test counts as JSON (model/status.rs), once reports were read.
    tests          TEXT,
    UNIQUE (build, suite, platform)
);
CREATE INDEX jobs_by_state ON jobs (state, priority, id);

CREATE TABLE attempts (
    id           INTEGER PRIMARY KEY,
    job          BIGINT NOT NULL REFERENCES jobs (id),
    number       BIGINT NOT NULL,
    platform     TEXT   NOT NULL,
    phase        TEXT   NOT NULL,
    ssh_port     BIGINT,
    -- JSON list of [phase, time].
    phases       TEXT   NOT NULL,
    reason       TEXT,
    message      TEXT,
    console_tail TEXT,
    UNIQUE (job, number)
);
CREATE INDEX attempts_by_phase ON attempts (phase, id);

-- One row a command of an attempt; what a restarted master needs to attach again.
CREATE TABLE steps (
    attempt     BIGINT NOT NULL REFERENCES attempts (id),
    number      BIGINT NOT NULL,
    name        TEXT   NOT NULL,
    -- Where the step's output begins in the job's log, in bytes.
    log_offset  BIGINT NOT NULL,
    started_at  BIGINT NOT NULL,
    finished_at BIGINT,
    -- JSON of the protocol's exit.
    exit        TEXT,
    PRIMARY KEY (attempt, number)
);

-- Where a job's log is: in segment files while it grows, sealed in the object store afterwards.
CREATE TABLE logs (
    job         BIGINT PRIMARY KEY REFERENCES jobs (id),
    -- Bytes of the whole stream, those left out included.
    length      BIGINT NOT NULL,
    -- The part that the cap left out, from and to; equal when nothing was.
    omitted_from BIGINT NOT NULL,
    omitted_to   BIGINT NOT NULL,
    -- JSON: the object's path and its frames' offsets.
    sealed      TEXT   NOT NULL
);

CREATE TABLE artifacts (
    job    BIGINT NOT NULL REFERENCES jobs (id),
    path   TEXT   NOT NULL,
    size   BIGINT NOT NULL,
    sha256 TEXT   NOT NULL,
    -- The path in the object store.
    object TEXT   NOT NULL,
    PRIMARY KEY (job, path)
);

-- The outbox: one row a context of a commit, with what GitHub should show and what it was last told.
CREATE TABLE statuses (
    id               INTEGER PRIMARY KEY,
    repository       TEXT   NOT NULL,
    sha              TEXT   NOT NULL,
    -- Lower case: GitHub compares contexts so.
    context_key      TEXT   NOT NULL,
    context          TEXT   NOT NULL,
    -- The build that wrote it; an older build never overwrites a newer one's.
    generation       BIGINT NOT NULL,
    state            TEXT   NOT NULL,
    description      TEXT   NOT NULL,
    target_url       TEXT   NOT NULL,
    changed_at       BIGINT NOT NULL,
    -- Rises with every change; what was sent is compared with it.
    version          BIGINT NOT NULL,
    sent_version     BIGINT NOT NULL DEFAULT 0,
    sent_state       TEXT,
    tries            BIGINT NOT NULL DEFAULT 0,
    next_try_at      BIGINT NOT NULL DEFAULT 0,
    -- Why the last try failed, while it is to be tried again.
    trouble          TEXT,
    -- Why it will not be tried again, once that is so.
    refused          TEXT,
    UNIQUE (repository, sha, context_key)
);
CREATE INDEX statuses_unsent ON statuses (next_try_at, id) WHERE refused IS NULL AND sent_version < version;

-- How far each polled branch has been read.
CREATE TABLE branches (
    repository TEXT   NOT NULL,
    branch     TEXT   NOT NULL,
    sha        TEXT   NOT NULL,
    PRIMARY KEY (repository, branch)
);
