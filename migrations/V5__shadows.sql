-- Topics that are folded again beside the live tables, each into a schema of its own: `loading` until all is folded and indexed,
-- `ready` to be swapped in, `retired` once it holds the tables that the swap has taken out. `definitions` tells whether it was made by
-- the definitions of today.
CREATE TABLE shadows (
    topic text PRIMARY KEY,
    schema_name text NOT NULL,
    state text NOT NULL,
    fold_version integer NOT NULL,
    definitions text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    swapped_at timestamptz
);

-- What a stretch of a topic left behind is found by its place when the log is folded again. Both tables hold only what did not go
-- the normal way, so the indexes cost little.
CREATE INDEX outcomes_place ON outcomes (topic, partition, "offset");
CREATE INDEX conflicts_place ON conflicts (topic, partition, "offset");
