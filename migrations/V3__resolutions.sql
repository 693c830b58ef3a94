-- How a person decided a conflict that its policy left open, by which event. `winner` is then the decision's; the other
-- columns stay what they were when the conflict arose. `client_device_type` is what the attempt was stamped with, since a
-- decision by `merge` compares it again.
ALTER TABLE conflicts
    ADD COLUMN client_device_type text,
    ADD COLUMN strategy text,
    ADD COLUMN resolved_at timestamptz,
    ADD COLUMN resolved_by text,
    ADD COLUMN resolved_device_id text,
    ADD COLUMN resolved_batch_id uuid,
    ADD COLUMN resolved_batch_index integer,
    ADD COLUMN resolved_version bigint,
    ADD COLUMN resolved_kept jsonb;
