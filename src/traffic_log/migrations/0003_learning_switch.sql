-- Whether learning rests, and how many stages passed their gates since an operator last said to go on: kept here, because a pause
-- outlives the process it was told to, and reaches a trainer that is another one.
CREATE TABLE learning_switch (
    one BIGINT PRIMARY KEY,
    paused BIGINT NOT NULL,
    unattended BIGINT NOT NULL
);
INSERT INTO learning_switch (one, paused, unattended) VALUES (1, 0, 0);
