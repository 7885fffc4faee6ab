-- A feature table from beginning to end: products, and what a shop derives from them.
--
--   cargo run -- -f examples/quickstart.sql
--
-- Run it from the root of the repository, as often as you like: it begins anew each time.
-- Without another name the database is ./headwater-db; look around in it afterwards with
-- `cargo run`, which opens a shell.

-- ---------------------------------------------------------------------------------------
-- 1. A table from a file
-- ---------------------------------------------------------------------------------------

-- CASCADE: the view of chapter 3, too, if this ran before.
DROP TABLE IF EXISTS products CASCADE;

-- Files are tables: CSV, Parquet, JSON, Arrow and Lance, by path or URL.
CREATE TABLE products (
    id BIGINT NOT NULL,
    name VARCHAR NOT NULL,
    category VARCHAR,
    description VARCHAR,
    list_price DECIMAL(10, 2),
    price DECIMAL(10, 2),
    views BIGINT,
    orders BIGINT,
    rating DOUBLE,
    ratings BIGINT,
    listed_on DATE,
    PRIMARY KEY (id)
) AS SELECT * FROM 'examples/data/products.csv';

SELECT category, count(*) AS products, min(price) AS cheapest, max(price) AS dearest
FROM products GROUP BY category ORDER BY category;

-- ---------------------------------------------------------------------------------------
-- 2. Computed columns
-- ---------------------------------------------------------------------------------------

-- A computed column is an expression over the other columns of its row. Declaring it is
-- instant, whatever the size of the table, since nothing is computed yet.
ALTER TABLE products
    -- How much a product is wanted: seen, bought, and liked by more than a few.
    ADD COLUMN popularity DOUBLE AS (
        round(ln(1 + views) + 4 * ln(1 + orders) + coalesce(rating - 3, 0) * ln(1 + ratings), 2)),
    ADD COLUMN price_tier VARCHAR AS (
        CASE WHEN price < 30 THEN 'budget' WHEN price < 90 THEN 'standard' ELSE 'premium' END),
    ADD COLUMN discount DOUBLE AS (
        greatest(0, round(100 * (1 - CAST(price AS DOUBLE) / CAST(list_price AS DOUBLE)), 1))),
    -- The weight stands somewhere in the description: "Weighs 850 g.", "Weight: 1.2 kg."
    ADD COLUMN weight_grams DOUBLE AS (coalesce(
        CAST(regexp_match(description, '([0-9.]+) kg')[1] AS DOUBLE) * 1000,
        CAST(regexp_match(description, '([0-9.]+) g')[1] AS DOUBLE))),
    -- Computed columns may read one another.
    ADD COLUMN score DOUBLE AS (round(popularity * (1 + discount / 100), 2));

-- A VIRTUAL column is computed whenever it is read, and never stored.
ALTER TABLE products
    ADD COLUMN label VARCHAR GENERATED ALWAYS AS (name || ' (' || category || ')') VIRTUAL;

DESCRIBE products;

-- REFRESH fills the stored ones. CASCADE first refreshes what they read: score reads
-- popularity and discount.
REFRESH COLUMN score, price_tier, weight_grams ON products CASCADE;

-- ---------------------------------------------------------------------------------------
-- 3. Reading them
-- ---------------------------------------------------------------------------------------

-- They are columns like any other.
SELECT label, price, price_tier, discount, weight_grams, score
FROM products ORDER BY score DESC, id LIMIT 5;

-- Not every description tells the weight: then it is NULL, and that is a result too.
SELECT price_tier, count(*) AS products, count(weight_grams) AS with_weight,
    round(avg(weight_grams)) AS average_grams, round(avg(discount), 1) AS average_discount
FROM products GROUP BY price_tier ORDER BY price_tier;

-- A view is stored in the database, and can be read like a table.
CREATE VIEW light_bargains AS
    SELECT id, label, price, discount, weight_grams FROM products
    WHERE weight_grams < 500 AND discount >= 20;

SELECT * FROM light_bargains ORDER BY discount DESC, price, id LIMIT 5;

-- ---------------------------------------------------------------------------------------
-- 4. The data change
-- ---------------------------------------------------------------------------------------

-- Forty new products arrive as Parquet. INSERT leaves computed columns out.
INSERT INTO products SELECT * FROM 'examples/data/new_products.parquet';

-- Some prices change.
UPDATE products SET price = changes.new_price
FROM 'examples/data/price_changes.csv' AS changes
WHERE changes.product_id = products.id;

-- What is out of date now? 40 rows have no value yet (pending). Where the price is read, 36
-- more have the value of an old price (stale); score follows once discount is refreshed.
SELECT column_name, kind, rows_pending, rows_stale, watermark_version, table_version
FROM system.computed_columns WHERE table_name = 'products' ORDER BY column_name;

-- What would a refresh do, and why? Nothing runs here.
EXPLAIN REFRESH COLUMN price_tier ON products;

-- It computes those rows and no others: 76 where the price matters, 40 where it does not
-- (popularity and weight_grams). The other 444 keep their values.
REFRESH COLUMN score, price_tier, weight_grams ON products CASCADE;

-- The new ones that are worth a look.
SELECT label, price, price_tier, weight_grams, score
FROM products WHERE id >= 1480 ORDER BY score DESC, id LIMIT 5;

-- ---------------------------------------------------------------------------------------
-- 5. Nothing to do
-- ---------------------------------------------------------------------------------------

-- OPTIMIZE puts small fragments together and moves rows. What is computed stays computed ...
OPTIMIZE products;

-- ... so there is nothing to compute, and nothing is written.
REFRESH COLUMN score, price_tier, weight_grams ON products CASCADE;

-- The same after a change that no expression reads.
UPDATE products SET listed_on = DATE '2026-11-21' WHERE id >= 1480;
REFRESH COLUMN score, price_tier, weight_grams ON products CASCADE;

-- ---------------------------------------------------------------------------------------
-- 6. Looking back
-- ---------------------------------------------------------------------------------------

-- Every change made a version, and each can be read.
SHOW VERSIONS FROM products;

SELECT products.id, products.name, before.price AS price_before, products.price AS price_now
FROM products JOIN products VERSION AS OF 1 AS before ON before.id = products.id
WHERE products.price <> before.price
ORDER BY abs(products.price - before.price) DESC, products.id LIMIT 5;

-- Every refresh that had something to do is on record as a job. Those that had nothing are not.
SELECT job_id, mode, state, rows_computed, rows_skipped, commits, computing_seconds
FROM system.jobs ORDER BY job_id;

-- Which column reads which.
SELECT object, depends_on FROM system.dependencies
WHERE object LIKE 'products.%' ORDER BY object, depends_on;
