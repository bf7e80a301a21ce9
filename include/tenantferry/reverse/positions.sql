-- In the source of a live tenant: how far the reverse stream has come. May run twice. No parameters.

CREATE SCHEMA IF NOT EXISTS tenantferry;

COMMENT ON SCHEMA tenantferry IS 'The way back of this tenant: written by the reverse stream of Tenantferry.';

-- One row per grace. It is the truth: the position changes in the transaction of the rows.
CREATE TABLE IF NOT EXISTS tenantferry.reverse_positions (
    grace         bigint PRIMARY KEY,
    start_lsn     pg_lsn NOT NULL,      -- of the target, where the grace began
    position      pg_lsn NOT NULL,      -- of the target: every transaction before it is applied
    changes       bigint NOT NULL DEFAULT 0,
    transactions  bigint NOT NULL DEFAULT 0,
    moved_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    closed_at     timestamptz           -- from here on no reverse stream may apply anything
);
