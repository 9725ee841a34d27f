-- The part of a stage's state that changes with its updates; an update rewrites only this. Null in a stage that has saved none, and in
-- stages of before, whose `state` has both parts.
ALTER TABLE stages ADD COLUMN progress TEXT;
