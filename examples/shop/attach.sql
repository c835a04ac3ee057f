SELECT pgembed.add_encoder('lite', 'builtin:lite');

-- Adds the column embedding. Rows that are there, and every row that changes, wait for a worker.
SELECT pgembed.attach('poster', 'embedding', encoder => 'lite', inputs => '{"image": "photo"}');
