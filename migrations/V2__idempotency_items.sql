-- Items that came again are counted beside batches' keys, under scope 'item': by the fold, by the log's times, a row for
-- each item and device that sent it again. `key` is the item's content hash in hexadecimal, `fingerprint` the same in
-- bytes, `batch_id` the batch of the last hit. What is new says which record the item was about, and where its history
-- lies in the log. Rows of batches have none of it: they are the gateway's.
ALTER TABLE idempotency_records
    ADD COLUMN domain text,
    ADD COLUMN subject text,
    ADD COLUMN topic text,
    ADD COLUMN partition integer;

-- The same columns in another order: a key is asked for without knowing whose it is.
ALTER TABLE idempotency_records
    DROP CONSTRAINT idempotency_records_pkey,
    ADD CONSTRAINT idempotency_records_pkey PRIMARY KEY (tenant_id, key, scope, user_id, device_id);

-- Whether everything that the log had of a partition by that moment has been applied: what comes later is later in the
-- log too. A partition that nobody has ever owned holds nothing up.
CREATE FUNCTION log_has_passed(of_topic text, of_partition integer, moment timestamptz) RETURNS boolean
LANGUAGE sql STABLE
AS $$
    SELECT NOT EXISTS (
        SELECT FROM positions p
        WHERE p.topic = of_topic AND p.partition = of_partition AND p.applied_through < moment
    )
$$;
