-- A single-tenant application with one of everything that the retrofit carries.
CREATE EXTENSION citext SCHEMA public;
CREATE EXTENSION btree_gist SCHEMA public;
CREATE EXTENSION pg_trgm SCHEMA public;
CREATE SCHEMA billing;
CREATE TYPE public.status AS ENUM ('new', 'paid', 'it''s void');
CREATE TYPE billing.money_amount AS (amount numeric(12, 2), currency text COLLATE "C");
CREATE DOMAIN public.email AS public.citext CONSTRAINT has_at CHECK (VALUE ~ '@');
CREATE DOMAIN public.work_email AS public.email NOT NULL;
COMMENT ON TYPE public.status IS 'where an order stands';

CREATE TABLE public.countries (code char(2) PRIMARY KEY, name text NOT NULL);
CREATE TABLE public.flags (id serial PRIMARY KEY, name text);

CREATE FUNCTION public.touch() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN NEW.updated_at := clock_timestamp(); RETURN NEW; END $$;
CREATE FUNCTION public.slug(value text) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT lower(replace(value, ' ', '-')) $$;

CREATE SEQUENCE public.invoice_numbers START 1000 INCREMENT 10 CACHE 5;
CREATE SEQUENCE public.countdown AS integer INCREMENT -1 START 100 MINVALUE -1000 MAXVALUE 100;

CREATE TABLE public.customers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email public.email NOT NULL,
    name text NOT NULL COLLATE "C",
    "Slug" text GENERATED ALWAYS AS (public.slug(name)) STORED,
    country char(2) REFERENCES public.countries,
    referrer bigint,
    newest_order bigint,
    notes jsonb NOT NULL DEFAULT '{}',
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT customers_email_key UNIQUE (email) INCLUDE (name),
    CONSTRAINT customers_name_check CHECK (name <> ''),
    CONSTRAINT customers_referrer_fkey FOREIGN KEY (referrer) REFERENCES public.customers (id)
        ON DELETE SET NULL
);
COMMENT ON TABLE public.customers IS 'who buys; it''s them';
COMMENT ON COLUMN public.customers."Slug" IS 'for addresses';
CREATE INDEX customers_notes_idx ON public.customers USING gin (notes jsonb_path_ops);
CREATE INDEX customers_name_trgm_idx ON public.customers USING gin (name public.gin_trgm_ops);
CREATE INDEX customers_lower_idx ON public.customers (lower(name) text_pattern_ops, updated_at DESC NULLS LAST)
    INCLUDE (email) WHERE name <> 'nobody';
CREATE UNIQUE INDEX customers_slug_key ON public.customers ("Slug") NULLS NOT DISTINCT;
CREATE TRIGGER customers_touch BEFORE UPDATE ON public.customers
    FOR EACH ROW WHEN (OLD.name IS DISTINCT FROM NEW.name) EXECUTE FUNCTION public.touch();

CREATE TABLE public.orders (
    id serial PRIMARY KEY,
    number bigint NOT NULL DEFAULT nextval('public.invoice_numbers'),
    reference text NOT NULL DEFAULT 'R-' || nextval('public.countdown'),
    customer bigint NOT NULL,
    status public.status NOT NULL DEFAULT 'new',
    total billing.money_amount,
    tags text[],
    CONSTRAINT orders_number_key UNIQUE (number) DEFERRABLE INITIALLY DEFERRED,
    CONSTRAINT orders_customer_fkey FOREIGN KEY (customer) REFERENCES public.customers (id)
        ON UPDATE CASCADE ON DELETE CASCADE DEFERRABLE
);
ALTER TABLE public.customers ADD CONSTRAINT customers_newest_order_fkey
    FOREIGN KEY (newest_order) REFERENCES public.orders (id) ON DELETE SET NULL DEFERRABLE;
CREATE UNIQUE INDEX orders_open_key ON public.orders (customer) WHERE status = 'new';

CREATE TABLE billing."Booking Slots" (
    room integer NOT NULL,
    during tstzrange NOT NULL,
    "order" integer,
    position smallint NOT NULL DEFAULT 1,
    PRIMARY KEY (room, position),
    CONSTRAINT no_overlap EXCLUDE USING gist (room WITH =, during WITH &&) WHERE (room > 0),
    CONSTRAINT "Booking order" FOREIGN KEY ("order") REFERENCES public.orders (id) ON DELETE SET NULL ("order")
);
CREATE INDEX booking_brin_idx ON billing."Booking Slots" USING brin (during);

CREATE VIEW public.order_totals AS
    SELECT o.customer, count(*) AS orders FROM public.orders AS o GROUP BY o.customer;
CREATE VIEW public.a_first WITH (security_barrier = true) AS
    SELECT c.id, t.orders FROM public.customers AS c JOIN public.order_totals AS t ON t.customer = c.id;
CREATE FUNCTION public.newest_orders(wanted bigint) RETURNS SETOF public.orders
    LANGUAGE sql STABLE AS $$ SELECT * FROM public.orders WHERE customer = wanted $$;
