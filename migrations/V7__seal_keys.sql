-- The keys that personal values are sealed under, each wrapped by a key that follows from the deployment's secret, as
-- readers look them up. The topic sync.keys.v1 is the truth; projectors take it over, and gateways note what they have
-- just made. A key that was destroyed stays as a row without its bytes, so that readers know erased from unknown.
CREATE TABLE seal_keys (
    tenant_id text NOT NULL,
    key_id text NOT NULL,
    user_id text NOT NULL,
    wrapped bytea,
    made_at timestamptz NOT NULL,
    erased_at timestamptz,
    PRIMARY KEY (tenant_id, key_id)
);
