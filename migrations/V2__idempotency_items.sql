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

-- Expired rows are found without passing over any that has to stay: a batch's by the clock, an item's by how far its
-- partition has been applied. Each row is in one of the two.
DROP INDEX idempotency_records_expiry;
CREATE INDEX idempotency_batches_expiry ON idempotency_records (expires_at) WHERE scope = 'batch';
CREATE INDEX idempotency_items_expiry ON idempotency_records (topic, partition, expires_at) WHERE scope = 'item';

-- The moment up to which everything that the log had has been applied, for those who need not know how positions are kept.
CREATE VIEW log_applied AS SELECT topic, partition, applied_through AS through FROM positions;
