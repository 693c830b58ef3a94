-- What operators did: a row is written when a command begins and completed when it ends, however it ends. One without an end
-- was cut off, or still runs. `who` is what the operator said or the system's user; `arguments` never hold a secret.
CREATE TABLE audit (
    audit_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    who text NOT NULL,
    host text NOT NULL,
    command text NOT NULL,
    arguments jsonb NOT NULL,
    dry_run boolean NOT NULL,
    result text,
    detail jsonb
);

-- What became of a dead letter: `status` is then `retried` or `dropped`. A retried one lies in the log once more, in the same
-- partition, at `retried_offset`. No letter is ever deleted.
ALTER TABLE dead_letters
    ADD COLUMN closed_at timestamptz,
    ADD COLUMN closed_by text,
    ADD COLUMN closed_why text,
    ADD COLUMN retried_offset bigint;
