-- A case of tests/model. Play it again: make replay SCRIPT=<this file>
--> case chunk_rows=3 workers=1 batch_bytes=2000
--> tables
CREATE TABLE accounts (id integer PRIMARY KEY, email text UNIQUE, big text);
ALTER TABLE accounts ALTER big SET STORAGE EXTERNAL;
--> rows
INSERT INTO accounts SELECT n, 'e' || n, repeat(md5(n::text), 100) FROM generate_series(1, 10) AS n;
--> round chunks=1 rounds=1
-- Two rows swap a value; one of them is copied.
--> write
BEGIN;
UPDATE accounts SET email = NULL WHERE id = 1;
UPDATE accounts SET email = 'e1' WHERE id = 9;
SAVEPOINT s;
UPDATE accounts SET email = 'e9';
DELETE FROM accounts;
ROLLBACK TO SAVEPOINT s;
UPDATE accounts SET email = 'e9' WHERE id = 1;
COMMIT;
--> stream
-- A row enters the copied range without its large value.
--> round chunks=1 rounds=1 killed_at=chunk_marked nth=1
--> before_snapshot
UPDATE accounts SET id = -1 WHERE id = 10;
--> across_first
INSERT INTO accounts VALUES (20, 'first', 'x');
--> across_second
INSERT INTO accounts VALUES (0, 'second', 'x');
--> across_third
INSERT INTO accounts VALUES (21, 'third', 'x');
UPDATE accounts SET email = 'third, too' WHERE id = 2;
--> after_snapshot
DELETE FROM accounts WHERE id IN (3, 8);
--> round chunks=2 rounds=2
--> write
BEGIN;
UPDATE accounts SET email = 'prepared' WHERE id = 4;
PREPARE TRANSACTION 'p1';
UPDATE accounts SET email = 'later begun, earlier committed' WHERE id = 5;
--> stream
--> write
COMMIT PREPARED 'p1';
--> hold
--> after_snapshot
UPDATE accounts SET email = 'not seen';
