-- Words to pictures, in plain SQL.
SELECT title, price
FROM poster
WHERE price < 50
ORDER BY embedding <=> (SELECT pgembed.encode_text('lite', 'a castle'))
LIMIT 5;

-- The same with scores; as many rows come back as match, up to k, however rare they are.
SELECT (item).title, (item).price, round(score::numeric, 3) AS score
FROM pgembed.search(NULL::poster, (SELECT pgembed.encode_text('lite', 'a bird')),
                    k => 5, filter => 'kind = ''animal'' AND price < 50');

-- Like this poster, but at night.
SELECT title, price
FROM poster
ORDER BY embedding <=> (SELECT pgembed.compose(ARRAY[(SELECT embedding FROM poster WHERE id = 1),
                                                     pgembed.encode_text('lite', 'at night')], ARRAY[1, 0.7]))
LIMIT 5;
