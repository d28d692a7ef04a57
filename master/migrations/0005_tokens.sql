-- Who may do what. Of each secret there is only the SHA-256 here, in hexadecimal.

CREATE TABLE tokens (
    name         TEXT   PRIMARY KEY,
    digest       TEXT   NOT NULL UNIQUE,
    -- read | act | admin
    may          TEXT   NOT NULL,
    created_at   BIGINT NOT NULL,
    last_used_at BIGINT
);

-- A browser that has shown a token. It ends with the token, at the latest.
CREATE TABLE logins (
    digest     TEXT   PRIMARY KEY,
    token      TEXT   NOT NULL REFERENCES tokens (name) ON DELETE CASCADE,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX logins_by_token ON logins (token, created_at);
