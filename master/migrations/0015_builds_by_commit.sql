-- A status, a look at GitHub and the removal of a build ask for the builds of one commit.
CREATE INDEX builds_by_commit ON builds (repository, head_sha);
