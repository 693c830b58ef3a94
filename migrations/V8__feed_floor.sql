-- Where a partition's feed begins: below `feed_floor` its changes, outcomes and tombstones may be gone, which were of before
-- `feed_floor_at` by the log's time. Both only rise, and are committed before a row goes: whoever reads sees the floor of
-- whatever is missing in the same snapshot. Zero where a domain on the topic keeps everything.
ALTER TABLE positions
    ADD COLUMN feed_floor bigint NOT NULL DEFAULT 0,
    ADD COLUMN feed_floor_at timestamptz NOT NULL DEFAULT '1970-01-01T00:00:00Z';
