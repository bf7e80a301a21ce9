-- The control schema: all runtime state of the fleet, in the target. Applied where it is missing
-- or was made of another version of this file; each statement may run twice. No parameters.

CREATE SCHEMA IF NOT EXISTS tenantferry;

-- One row per tenant that was ever prepared: the registry.
CREATE TABLE IF NOT EXISTS tenantferry.tenants (
    tenant            text PRIMARY KEY,
    tenant_id         uuid NOT NULL UNIQUE,
    phase             text NOT NULL,
    run_id            text,             -- the run that owns, or owned, the move
    source_identity   text NOT NULL,    -- system identifier and database, not an address
    created_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT tenants_source_identity_key UNIQUE (source_identity)
);

-- The audit trail: every change of a phase, never updated.
CREATE TABLE IF NOT EXISTS tenantferry.phase_changes (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant      text NOT NULL REFERENCES tenantferry.tenants,
    from_phase  text,
    to_phase    text NOT NULL,
    changed_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_by  text NOT NULL DEFAULT session_user,
    run_id      text,
    lsn         pg_lsn,
    reason      text NOT NULL
);
CREATE INDEX IF NOT EXISTS phase_changes_tenant_idx ON tenantferry.phase_changes (tenant, id);

-- A round: chunks copied under one snapshot, which keeps the source from vacuuming what it sees.
CREATE TABLE IF NOT EXISTS tenantferry.rounds (
    tenant            text NOT NULL REFERENCES tenantferry.tenants,
    round             integer NOT NULL,
    consistent_point  pg_lsn NOT NULL,
    started_at        timestamptz NOT NULL DEFAULT clock_timestamp(),   -- the snapshot was taken
    finished_at       timestamptz,                                      -- and let go
    PRIMARY KEY (tenant, round)
);

-- The rows of one table with lower < key <= upper. A null bound is open. A bound holds one
-- text per key column, in the order of key_columns.
CREATE TABLE IF NOT EXISTS tenantferry.chunks (
    tenant          text NOT NULL REFERENCES tenantferry.tenants,
    table_schema    text NOT NULL,
    table_name      text NOT NULL,
    chunk           integer NOT NULL,
    key_columns     text[] NOT NULL,
    lower           text[],
    upper           text[],
    estimated_rows  bigint NOT NULL,
    round           integer,        -- null: pending, and no round may copy it now
    rows            bigint,
    bytes           bigint,
    done_at         timestamptz,    -- set in the transaction that writes the rows
    published_as    text NOT NULL DEFAULT '',   -- its table's entry in the source's publication
    PRIMARY KEY (tenant, table_schema, table_name, chunk)
);
ALTER TABLE tenantferry.chunks ADD COLUMN IF NOT EXISTS published_as text NOT NULL DEFAULT '';

-- A stream of a tenant: its position P, what it was told, what it answers. The forward one applies
-- the source's changes to the target, and P is the truth. The reverse one applies the target's
-- changes to the source of a tenant in grace; there the truth stands in the source, with its rows,
-- and P is what was last reported of it.
CREATE TABLE IF NOT EXISTS tenantferry.streams (
    tenant             text NOT NULL REFERENCES tenantferry.tenants,
    direction          text NOT NULL DEFAULT 'forward',   -- or reverse
    position           pg_lsn NOT NULL,     -- P: every transaction before it is applied
    confirmed          pg_lsn NOT NULL,     -- the slot was never confirmed beyond it
    source_position    pg_lsn,              -- reverse: where the source has stood at least
    state              text NOT NULL DEFAULT 'stopped',
    command            text NOT NULL DEFAULT 'run',
    command_lsn        pg_lsn,
    command_id         bigint NOT NULL DEFAULT 0,
    acknowledged_id    bigint NOT NULL DEFAULT 0,
    lease_until        timestamptz,         -- a hold nobody renews ends by itself
    changes            bigint NOT NULL DEFAULT 0,
    transactions       bigint NOT NULL DEFAULT 0,
    lag_seconds        double precision,    -- last marker round trip; null is unknown
    lag_measured_at    timestamptz,
    lag_bytes          bigint,
    reported_at        timestamptz,
    error              text,
    copy_again         boolean NOT NULL DEFAULT false,  -- only a new backfill helps
    repairable         boolean NOT NULL DEFAULT false,  -- or to copy again what differs
    touched_since      pg_lsn,              -- from this P on what is written stands in touched
    throttled_by       text,                -- what slows down the copy or the stream ...
    throttled_at       timestamptz,         -- ... as last seen then; it is over soon after
    timeline           bigint,              -- of the source, that P is on; null until it is known
    timeline_began     pg_lsn,              -- 0/0 of the first one; null until it is known
    went_back_to       pg_lsn,              -- where the source's log was seen to end before P; null: never
    PRIMARY KEY (tenant, direction)
);
ALTER TABLE tenantferry.streams ADD COLUMN IF NOT EXISTS source_position pg_lsn;
ALTER TABLE tenantferry.streams ADD COLUMN IF NOT EXISTS repairable boolean NOT NULL DEFAULT false;
ALTER TABLE tenantferry.streams ADD COLUMN IF NOT EXISTS touched_since pg_lsn;
ALTER TABLE tenantferry.streams ADD COLUMN IF NOT EXISTS throttled_by text;
ALTER TABLE tenantferry.streams ADD COLUMN IF NOT EXISTS throttled_at timestamptz;
ALTER TABLE tenantferry.streams ADD COLUMN IF NOT EXISTS timeline bigint;
ALTER TABLE tenantferry.streams ADD COLUMN IF NOT EXISTS timeline_began pg_lsn;
ALTER TABLE tenantferry.streams ADD COLUMN IF NOT EXISTS went_back_to pg_lsn;

-- The rows that the forward stream has written since they were compared: a cutover compares these
-- once more. Each row is written in the transaction of the rows that it tells of.
CREATE TABLE IF NOT EXISTS tenantferry.touched (
    tenant         text NOT NULL REFERENCES tenantferry.tenants,
    table_schema   text NOT NULL,
    table_name     text NOT NULL,
    key_columns    text[] NOT NULL,     -- empty: any row of the table
    keys           text[],              -- one key after the other
    written_after  pg_lsn NOT NULL      -- P before that transaction
);
CREATE INDEX IF NOT EXISTS touched_tenant_idx ON tenantferry.touched (tenant);

-- One exact comparison at one position.
CREATE TABLE IF NOT EXISTS tenantferry.validations (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant       text NOT NULL REFERENCES tenantferry.tenants,
    run_id       text,
    position     pg_lsn NOT NULL,
    started_at   timestamptz NOT NULL,
    finished_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    tables       integer NOT NULL,
    chunks       integer NOT NULL,
    rows         bigint NOT NULL,
    mismatches   bigint NOT NULL,       -- differing rows and failed probes; 0 is a match
    direction    text NOT NULL DEFAULT 'forward',   -- reverse: of a tenant in grace; position is the target's
    since        pg_lsn,                -- only what was written since this position was compared; null: all
    witnessed    text                   -- what the witness of the move says; null: it has none
);
ALTER TABLE tenantferry.validations ADD COLUMN IF NOT EXISTS witnessed text;
ALTER TABLE tenantferry.validations ADD COLUMN IF NOT EXISTS since pg_lsn;
-- State of each table of the source: the comparison holds for as long as that.
ALTER TABLE tenantferry.validations ADD COLUMN IF NOT EXISTS source_tables jsonb;
ALTER TABLE tenantferry.validations DROP COLUMN IF EXISTS partitions;
CREATE INDEX IF NOT EXISTS validations_tenant_idx ON tenantferry.validations (tenant, id);

-- What a validation found, by name.
CREATE TABLE IF NOT EXISTS tenantferry.mismatches (
    validation_id  bigint NOT NULL REFERENCES tenantferry.validations,
    number         integer NOT NULL,
    table_schema   text NOT NULL,
    table_name     text NOT NULL,
    kind           text NOT NULL,       -- missing, extra, different, orphan, isolation
    row_key        text,
    detail         text NOT NULL,
    PRIMARY KEY (validation_id, number)
);

-- One attempt of a cutover or of a rollback, from PAUSE to RESUME. Each step is recorded when it is
-- done.
CREATE TABLE IF NOT EXISTS tenantferry.write_pauses (
    id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant             text NOT NULL REFERENCES tenantferry.tenants,
    direction          text NOT NULL DEFAULT 'forward',   -- a cutover; reverse: a rollback
    run_id             text,
    began_at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    deadline           timestamptz NOT NULL,
    paused_at          timestamptz,
    fenced_at          timestamptz,
    final_lsn          pg_lsn,
    drained_at         timestamptz,
    compared_at        timestamptz,     -- what was written last is the same on both sides
    sequences_at       timestamptz,
    flipped_at         timestamptz,     -- from here on the tenant belongs to the other side
    resumed_at         timestamptz,
    probed_at          timestamptz,
    undoing_at         timestamptz,     -- from here on it cannot be flipped any more
    undone_at          timestamptz,
    undo_reason        text,
    fence              jsonb,           -- what the fence takes away, to give it back
    source_pid         integer,         -- of the cutover's session on the source
    dropped_at         timestamptz,     -- the source has forgotten about the move
    sequences          jsonb            -- what each sequence was set to in the target
);
ALTER TABLE tenantferry.write_pauses ADD COLUMN IF NOT EXISTS compared_at timestamptz;
CREATE INDEX IF NOT EXISTS write_pauses_tenant_idx ON tenantferry.write_pauses (tenant, id);
-- At most one attempt of a tenant may be open.
CREATE UNIQUE INDEX IF NOT EXISTS write_pauses_open_key ON tenantferry.write_pauses (tenant)
    WHERE undone_at IS NULL AND resumed_at IS NULL;

-- The time after a cutover in which the tenant can go back: from the flip until it was rolled back
-- or retired. Its reverse stream begins at start_lsn.
CREATE TABLE IF NOT EXISTS tenantferry.graces (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant       text NOT NULL REFERENCES tenantferry.tenants,
    attempt      bigint NOT NULL UNIQUE REFERENCES tenantferry.write_pauses,
    start_lsn    pg_lsn NOT NULL,       -- of the target; nothing of the tenant's was written before
    started_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    ends_at      timestamptz NOT NULL,  -- not before this it is retired
    lost_at      timestamptz,           -- from here on there is no way back
    lost_reason  text,
    loss_seen_at timestamptz,           -- a person has taken note of the loss
    ended_at     timestamptz,
    end_reason   text                   -- rolled back, retired
);
ALTER TABLE tenantferry.graces ADD COLUMN IF NOT EXISTS announced_end timestamptz;  -- ends_at, as on-call was told
-- Which files hold the rows of the source that are those of the target, but for what is still to be
-- brought: when the tenant left it, or later, when they were compared. What is elsewhere when it goes back
-- was truncated, rewritten or made again, and is compared before. Null: nobody knows.
ALTER TABLE tenantferry.graces ADD COLUMN IF NOT EXISTS source_files jsonb;
-- A tenant is in one grace at most.
CREATE UNIQUE INDEX IF NOT EXISTS graces_open_key ON tenantferry.graces (tenant)
    WHERE ended_at IS NULL;

-- What all reverse streams share: one slot on the target. One row, or none before the first cutover.
CREATE TABLE IF NOT EXISTS tenantferry.reverse_slot (
    slot         text PRIMARY KEY,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    confirmed    pg_lsn NOT NULL,       -- the slot was never confirmed beyond it
    read_to      pg_lsn NOT NULL,       -- how far its log was read
    reported_at  timestamptz,           -- null: nobody has read it yet
    error        text
);

-- Where each move stands, for people and dashboards. Rows and bytes are what is committed; rows to
-- come are an estimate from statistics. Null is unknown, never zero.
CREATE OR REPLACE VIEW tenantferry.progress AS
SELECT
    t.tenant,
    t.phase,
    coalesce(c.tables, 0) AS tables,
    coalesce(c.chunks, 0) AS chunks,
    coalesce(c.chunks_done, 0) AS chunks_done,
    coalesce(c.rows, 0)::bigint AS rows,
    coalesce(c.estimated_rows, 0)::bigint AS estimated_rows,
    coalesce(c.bytes, 0)::bigint AS bytes,
    r.rows_per_second,
    CASE WHEN c.chunks_done = c.chunks THEN 0 ELSE c.rows_to_come / r.rows_per_second END
        AS eta_seconds,             -- of the copy
    s.lag_seconds,
    coalesce(s.changes, 0) AS changes,
    s.lag_measured_at,
    coalesce(e.rounds, 0) AS rounds,
    e.snapshot_seconds,             -- age of the snapshot that is held now
    e.longest_snapshot_seconds,
    -- Written every second for as long as it is so, also by a process that dies of it.
    CASE WHEN s.throttled_at > clock_timestamp() - interval '15 seconds' THEN s.throttled_by END
        AS throttled_by
FROM tenantferry.tenants AS t
LEFT JOIN (
    SELECT tenant,
           count(DISTINCT (table_schema, table_name)) AS tables,
           count(*) AS chunks,
           count(done_at) AS chunks_done,
           sum(rows) FILTER (WHERE done_at IS NOT NULL) AS rows,
           sum(bytes) FILTER (WHERE done_at IS NOT NULL) AS bytes,
           sum(estimated_rows) AS estimated_rows,
           (sum(estimated_rows) FILTER (WHERE done_at IS NULL))::double precision AS rows_to_come
    FROM tenantferry.chunks
    GROUP BY tenant
) AS c USING (tenant)
LEFT JOIN (
    -- A round that is not over counts until now.
    SELECT tenant, count(*) AS rounds, sum(seconds) AS seconds,
           max(seconds)::double precision AS longest_snapshot_seconds,
           (max(seconds) FILTER (WHERE finished_at IS NULL))::double precision AS snapshot_seconds
    FROM tenantferry.rounds CROSS JOIN LATERAL (
        SELECT extract(epoch FROM coalesce(finished_at, clock_timestamp()) - started_at) AS seconds
    ) AS age
    GROUP BY tenant
) AS e USING (tenant)
CROSS JOIN LATERAL (
    -- Null before the first chunk is done: no rate can be told from nothing.
    SELECT (nullif(c.rows, 0) / nullif(e.seconds, 0))::double precision AS rows_per_second
) AS r
LEFT JOIN tenantferry.streams AS s ON s.tenant = t.tenant AND s.direction = 'forward';

-- One run of nightly_wave. It serves one stage; a stage may take several waves.
CREATE TABLE IF NOT EXISTS tenantferry.waves (
    wave          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id        text NOT NULL UNIQUE,
    stage         integer NOT NULL,     -- 1 is the first of the declared stages
    stage_size    integer NOT NULL,     -- tenants that have to be live for the stage to end
    stage_wave    bigint,               -- that the stage began with; null: this one
    planned_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    starts_until  timestamptz NOT NULL, -- from here on it starts no tenant
    ended_at      timestamptz,
    stop_reason   text                  -- set: it starts no tenant any more
);
-- Set: before, it starts no tenant; the stage before has to soak.
ALTER TABLE tenantferry.waves ADD COLUMN IF NOT EXISTS starts_from timestamptz;

-- The tenants that a wave moves, in their order.
CREATE TABLE IF NOT EXISTS tenantferry.wave_members (
    wave        bigint NOT NULL REFERENCES tenantferry.waves ON DELETE CASCADE,
    tenant      text NOT NULL,          -- not registered before its move has begun
    position    integer NOT NULL,
    run_id      text NOT NULL,          -- of migrate_<tenant>, the same however often it is started
    alone       boolean NOT NULL,       -- never in flight beside another
    size_bytes  bigint,
    started_at  timestamptz,            -- null: not started yet
    standing    text,                   -- running, asking, live, failed, declined, skipped; null once
                                        -- started: whether there is a run nobody knows
    since       timestamptz,            -- of the standing
    detail      text,                   -- of the standing; without one, what keeps it from starting
    PRIMARY KEY (wave, tenant)
);
CREATE INDEX IF NOT EXISTS wave_members_tenant_idx ON tenantferry.wave_members (tenant, wave);

-- The last looks of watch_fleet: how fast something grows, and for how long it has not been well, is
-- told from them. Pruned at each look.
CREATE TABLE IF NOT EXISTS tenantferry.observations (
    place     text NOT NULL,        -- of a slot: the server's address; of a stream: its direction
    subject   text NOT NULL,        -- a slot, or a tenant's stream
    seen_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    is_well   boolean NOT NULL,     -- the slot is read; the stream's lag is known
    bytes     bigint,               -- log that the slot keeps back
    PRIMARY KEY (place, subject, seen_at)
);

-- When validate_fleet last tried to compare a tenant, whatever came of it.
CREATE TABLE IF NOT EXISTS tenantferry.comparison_tries (
    tenant    text PRIMARY KEY REFERENCES tenantferry.tenants,
    tried_at  timestamptz NOT NULL
);

-- The witness of a move: a slot of the target that follows what is written there to other tenants.
-- Its row is there while the move has one.
CREATE TABLE IF NOT EXISTS tenantferry.witnesses (
    tenant        text PRIMARY KEY REFERENCES tenantferry.tenants,
    from_lsn      pg_lsn NOT NULL,      -- of the target; of what was committed before it knows nothing
    checked_to    pg_lsn NOT NULL,      -- every transaction that ended before it was looked at
    transactions  bigint NOT NULL DEFAULT 0,    -- of the move, seen between the two
    looked_at     timestamptz,
    lost_reason   text                  -- why it cannot vouch for anything any more
);

-- Each transaction of a move that has a witness, until the witness has seen it in the log. Written in
-- that transaction.
CREATE TABLE IF NOT EXISTS tenantferry.signatures (
    tenant  text NOT NULL REFERENCES tenantferry.tenants,
    xid     bigint NOT NULL,            -- its lower 32 bits
    PRIMARY KEY (tenant, xid)
);

-- What a move did to rows of other tenants. Empty, or something is broken. A person who has mended the
-- rows deletes what is settled.
CREATE TABLE IF NOT EXISTS tenantferry.violations (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant        text NOT NULL REFERENCES tenantferry.tenants,     -- whose move it was
    table_schema  text NOT NULL,
    table_name    text NOT NULL,
    change        text NOT NULL,        -- INSERT, UPDATE, DELETE, TRUNCATE
    rows          bigint NOT NULL,
    keys          text[] NOT NULL,      -- of the first rows
    xid           bigint NOT NULL,
    commit_lsn    pg_lsn NOT NULL,
    found_at      timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What became of the source of a tenant that is retired: its dump, the proof that it can be restored,
-- and how to open the source again.
CREATE TABLE IF NOT EXISTS tenantferry.archives (
    tenant       text PRIMARY KEY REFERENCES tenantferry.tenants,
    attempt      bigint NOT NULL,       -- the cutover that brought it to the target
    began_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    url          text,
    bytes        bigint,
    sha256       text,                  -- hexadecimal digits
    tables       integer,
    rows         bigint,
    contents     jsonb,                 -- rows of each table, encoding and locale
    server_major integer,               -- version of the source
    dumped_at    timestamptz,
    verified_at  timestamptz,           -- it was restored, and held as many rows of each table
    unlock       text,                  -- what a superuser runs, in another database, to let people in
    locking_at   timestamptz,           -- from here on nobody may get into the source
    locked_at    timestamptz
);
-- Of the dump's file. Random: another target may keep its dumps in the same folder.
ALTER TABLE tenantferry.archives ADD COLUMN IF NOT EXISTS token text
    NOT NULL DEFAULT substr(md5(gen_random_uuid()::text), 1, 8);
