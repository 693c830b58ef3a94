-- By which fold a partition was applied last. Two releases may give an event another meaning, or states that the older one
-- cannot read; so a partition that a newer one has claimed is not claimed by an older one any more. What was applied before
-- this column came was applied by the first.
ALTER TABLE positions ADD COLUMN fold_version integer NOT NULL DEFAULT 1;
