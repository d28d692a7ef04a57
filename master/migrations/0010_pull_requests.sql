-- When a pull request was closed last, as far as was heard: what happened before may be heard of later.
CREATE TABLE pull_requests (
    repository TEXT   NOT NULL,
    number     BIGINT NOT NULL,
    closed_at  BIGINT NOT NULL,
    PRIMARY KEY (repository, number)
);
