-- What a master that is started anew needs to go on with the log and the endings of an attempt where they were.

-- Where the line about the attempt's end begins in the job's log; set together with the reason.
ALTER TABLE attempts ADD COLUMN log_end BIGINT;
-- Where the step's output ended in the job's log.
ALTER TABLE steps ADD COLUMN log_end BIGINT;
-- Why the master stopped the step, when it did: set before the guest is asked to.
ALTER TABLE steps ADD COLUMN stop_reason TEXT;
ALTER TABLE steps ADD COLUMN stop_message TEXT;
