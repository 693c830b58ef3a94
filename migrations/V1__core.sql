-- The tables that every deployment has, whatever its domains. Names are unqualified: the migration runs with the
-- service's schema first in the search path. A domain's own tables come from its definition.

-- An RFC 3339 time says its own offset, so no setting changes what it means; a generated column needs the promise.
CREATE FUNCTION instant(moment text) RETURNS timestamptz
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
AS $$ BEGIN RETURN moment::timestamptz; END $$;

-- How far each partition's fold has come. `next_offset` moves only by compare-and-set under the owner's `epoch`, in
-- the transaction that writes what was folded. `last_log_time` is the highest log time applied; `applied_through` may
-- be later, where the owner has seen that there was nothing more to apply.
CREATE TABLE positions (
    topic text NOT NULL,
    partition integer NOT NULL,
    next_offset bigint NOT NULL DEFAULT 0,
    epoch bigint NOT NULL DEFAULT 0,
    owner text,
    last_log_time timestamptz NOT NULL DEFAULT '1970-01-01T00:00:00Z',
    applied_through timestamptz NOT NULL DEFAULT '1970-01-01T00:00:00Z',
    end_offset bigint,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition)
) WITH (fillfactor = 50);

-- A worker that lost a partition and does not know it yet must write nothing at all: its transaction ends here.
CREATE FUNCTION fence(moved bigint, expected bigint) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF moved <> expected THEN
        RAISE EXCEPTION 'fenced: % of % partitions are still this worker''s', moved, expected USING ERRCODE = 'TL001';
    END IF;
END $$;

-- What did not apply: duplicates, conflicts without effect, refusals. What did apply has its row in a feed instead.
-- The detail is the outcome as it is answered. `item_hash` is the item's content, where a repeat under another batch
-- must find it again (conflicts, deletions of what was not there).
CREATE TABLE outcomes (
    tenant_id text NOT NULL,
    batch_id uuid NOT NULL,
    batch_index integer NOT NULL,
    domain text NOT NULL,
    subject text NOT NULL,
    user_id text NOT NULL,
    device_id text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    logged_at timestamptz NOT NULL,
    status text NOT NULL,
    item_hash uuid,
    detail jsonb NOT NULL,
    PRIMARY KEY (tenant_id, batch_id, batch_index)
);
CREATE INDEX outcomes_item ON outcomes (tenant_id, item_hash) WHERE item_hash IS NOT NULL;

-- Every item that was behind its record, with both sides, whatever became of it.
CREATE TABLE conflicts (
    conflict_id uuid PRIMARY KEY,
    tenant_id text NOT NULL,
    domain text NOT NULL,
    mobile_id uuid NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    batch_id uuid NOT NULL,
    batch_index integer NOT NULL,
    occurred_at timestamptz NOT NULL,
    user_id text NOT NULL,
    device_id text NOT NULL,
    operation text NOT NULL,
    policy text NOT NULL,
    winner text NOT NULL,
    client_version bigint NOT NULL,
    server_version bigint NOT NULL,
    result_version bigint NOT NULL,
    client_doc jsonb,
    server_doc jsonb,
    client_time timestamptz NOT NULL,
    server_time timestamptz NOT NULL,
    kept jsonb
);
CREATE INDEX conflicts_by_time ON conflicts (tenant_id, occurred_at, conflict_id);
CREATE INDEX conflicts_by_record ON conflicts (tenant_id, mobile_id);

-- What the fold could not read, with its place in the log; the partition moved on.
CREATE TABLE dead_letters (
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    tenant_id text,
    reason text NOT NULL,
    headers jsonb NOT NULL,
    key bytea,
    value bytea,
    logged_at timestamptz NOT NULL,
    status text NOT NULL DEFAULT 'open',
    PRIMARY KEY (topic, partition, "offset")
);

-- A batch as its gateway saw it: kept as long as the feed, so that a receipt resolves weeks later. `appended` lists
-- [topic, partition, last offset]; `refused` holds the items that never reached the log.
CREATE TABLE batches (
    tenant_id text NOT NULL,
    batch_id uuid NOT NULL,
    domain text NOT NULL,
    user_id text NOT NULL,
    device_id text NOT NULL,
    received_at timestamptz NOT NULL,
    items integer NOT NULL,
    appended_items integer NOT NULL,
    appended jsonb NOT NULL,
    refused jsonb NOT NULL,
    PRIMARY KEY (tenant_id, batch_id)
);

-- Keys of batches (and, by scope, of items). The claim in flight is `lease_owner` until `lease_until`; the answer is
-- another thing: kept until `expires_at`, byte for byte.
CREATE TABLE idempotency_records (
    tenant_id text NOT NULL,
    scope text NOT NULL,
    user_id text NOT NULL,
    device_id text NOT NULL,
    key text NOT NULL,
    fingerprint bytea NOT NULL,
    batch_id uuid NOT NULL,
    lease_owner uuid,
    lease_until timestamptz,
    receipt text,
    answer_status smallint,
    answer text,
    hit_count bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_hit_at timestamptz,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, scope, device_id, user_id, key)
);
CREATE INDEX idempotency_records_expiry ON idempotency_records (expires_at);
