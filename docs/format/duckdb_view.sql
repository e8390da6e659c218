-- The rows of one table of a snapshot in DuckDB (1.3 or newer), straight from the segments of a vault that is not encrypted.
--
-- Edit the four lines of part 1 and the key in part 3 (here accountid: `key` of the table in the manifest). For an encrypted
-- vault decrypt the manifest and the table's segments with `age` into a folder of the same shape first.
--
-- Good for analysis. Three things to know:
--   * DuckDB reads JSON numbers with a fraction as doubles and prints them anew: 20000.0000 becomes 20000.0. Where every
--     digit counts use `dynavault export` or read_vault.py.
--   * A table with more than one key column (elastic tables) cannot be read this way: the tombstones of a sweep name its
--     rows by a hash of the key.
--   * A missing member and a null are the same in SQL.

-- 1. What to read. Columns are lists: each line of a segment is a batch of rows. `id` is the row id in tombstones.
SET VARIABLE folder = 'vault/environments/contoso-prod';
SET VARIABLE snapshot = '01M84XSB3CMQCJS9V2W1MM1WQE';
SET VARIABLE logical_name = 'account';
SET VARIABLE columns = {'accountid': 'VARCHAR[]', 'name': 'VARCHAR[]', 'revenue': 'VARCHAR[]', 'id': 'VARCHAR[]'};

-- 2. The segments of the table, rows and tombstones, in the order of the manifest.
SET VARIABLE segments = (
    SELECT list_transform(
        list_filter(t.segments, lambda s: s.kind <> 'content'),
        lambda s: concat(getvariable('folder'), '/tables/', t."table", '/', s.id, if(s.kind = 'deleted', '.deleted', ''), '.jsonl.zst'))
    FROM (SELECT unnest(tables) AS t FROM read_json(
        concat(getvariable('folder'), '/manifests/', getvariable('snapshot'), '.json'),
        columns = {'tables': 'STRUCT("table" VARCHAR, segments STRUCT(id VARCHAR, kind VARCHAR)[])[]'},
        maximum_object_size = 536870912))
    WHERE t."table" = getvariable('logical_name'));

-- 3. Frames, then versions of rows, then of each row the newest version, unless that is a tombstone.
CREATE OR REPLACE TEMP VIEW live AS
WITH frames AS (SELECT *, row_number() OVER () AS frame FROM read_json(getvariable('segments'), columns = getvariable('columns'), format = 'newline_delimited', filename = 'segment', maximum_object_size = 67108864)),
versions AS (SELECT list_position(getvariable('segments'), segment) AS segment, frame, generate_subscripts(coalesce(accountid, id), 1) AS place, id IS NOT NULL AS gone, unnest(coalesce(accountid, id)) AS accountid, unnest(COLUMNS(* EXCLUDE (segment, frame, accountid, id))) FROM frames)
SELECT * EXCLUDE (segment, frame, place, gone) FROM (SELECT * FROM versions QUALIFY row_number() OVER (PARTITION BY lower(accountid) ORDER BY segment DESC, frame DESC, place DESC) = 1) WHERE NOT gone;

-- 4. Use it.
-- SELECT count(*), sum(revenue::DECIMAL(38, 4)) FROM live;
