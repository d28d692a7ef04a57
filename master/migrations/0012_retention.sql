-- When the log and the artefacts of a job were removed because of their age.
ALTER TABLE jobs ADD COLUMN log_removed_at BIGINT;
ALTER TABLE jobs ADD COLUMN artifacts_removed_at BIGINT;
