-- The delay before a retry follows the strategy, saturates at its cap and never overflows.
begin;
select plan(28);

-- Given a task
create temporary table task as
select '01950000-0000-7000-8000-000000000000'::uuid as id;

-- When there is no strategy: exponential, base 1, factor 2, cap 300, jitter 0.1
create temporary table standard as
select n.failures, teguh._backoff(null, n.failures, t.id) as delay
from task as t
cross join generate_series(1, 100) as n(failures);

-- Then
select ok(
  bool_and(s.delay / least(300, 2 ^ (s.failures - 1)) between 0.9 and 1),
  'the default retry has exponential backoff with jitter and a cap'
)
from standard as s;

select ok(
  count(distinct s.delay) > 80,
  'the jitter differs from failure to failure'
)
from standard as s
where s.failures > 10;

select ok(
  min(s.delay) > 0.8,
  'a failing handler never spins'
)
from standard as s;

select is(
  teguh._backoff(null, 7, t.id), s.delay,
  'the same failure always waits as long'
)
from task as t
cross join standard as s
where s.failures = 7;

select isnt(
  teguh._backoff(null, 7, '01950000-0000-7000-8000-000000000100'), s.delay,
  'two tasks that failed together do not come back together'
)
from standard as s
where s.failures = 7;

-- When the strategy is given
create temporary table given (
  place    serial,
  strategy jsonb,
  failures integer,
  delay    double precision,
  why      text
);
insert into given (strategy, failures, delay, why)
values
  ('{"kind": "none"}', 1, 0, 'none retries at once'),
  ('{"kind": "none", "base_seconds": 9}', 5, 0, 'none has no base'),
  ('{"kind": "fixed"}', 1, 60, 'fixed waits 60 seconds by default'),
  ('{"kind": "fixed"}', 9, 60, 'fixed waits as long each time'),
  ('{"kind": "fixed", "base_seconds": 0.25}', 3, 0.25, 'fixed takes fractions of a second'),
  ('{"kind": "fixed", "base_seconds": 90, "max_seconds": 45}', 1, 45, 'fixed has a cap, too'),
  ('{"kind": "exponential"}', 1, 30, 'exponential begins with 30 seconds by default'),
  ('{"kind": "exponential"}', 4, 240, 'exponential doubles by default'),
  ('{"kind": "exponential", "base_seconds": 2, "factor": 3}', 4, 54, 'base and factor count'),
  ('{"kind": "exponential", "base_seconds": 2, "max_seconds": 5}', 3, 5, 'the cap is kept'),
  ('{"kind": "exponential", "base_seconds": 0}', 50, 0, 'a base of zero stays zero'),
  ('{"kind": "exponential", "factor": 0.5}', 3, 7.5, 'a factor below one shortens the delay'),
  ('{"kind": "exponential", "factor": 0}', 2147483647, 0, 'and never underflows'),
  ('{"kind": "exponential", "factor": 1}', 1000000, 30, 'a factor of one stays with the base');

-- Then
select is(
  round(teguh._backoff(g.strategy, g.failures, t.id)::numeric, 6),
  round(g.delay::numeric, 6),
  g.why
)
from given as g
cross join task as t
order by g.place;

select ok(
  bool_and(
    teguh._backoff('{"kind": "fixed", "base_seconds": 100, "jitter": 0.5}', n.failures, t.id)
    between 50 and 100
  ),
  'jitter shortens the delay by at most its share'
)
from task as t
cross join generate_series(1, 100) as n(failures);

-- When a strategy grows and grows
create temporary table wild as
select s.base, s.factor, f.failures
from (
  values (1e12, 1e6), (1.0, 1e6), (1e-300, 1e6), (1e-307, 1e6), (1e-308, 2.0), (1e-12, 1.0001)
) as s(base, factor)
cross join (
  select generate_series(1, 1100) as failures
  union all
  values (100000), (1048575), (2147483647)
) as f;

-- Then
select lives_ok(
  $$
    select teguh._backoff(
      jsonb_build_object('kind', 'exponential', 'base_seconds', w.base, 'factor', w.factor),
      w.failures, t.id
    )
    from wild as w
    cross join task as t
  $$,
  'no strategy overflows, however many failures there are'
);

select is(
  teguh._backoff('{"kind": "exponential", "factor": 1e6}', 2147483647, t.id), 1e9::float8,
  'without a cap of its own a strategy saturates at a thousand million seconds'
)
from task as t;

-- Given a task whose strategy goes to the limits of a number
select teguh.create_queue('q');
create temporary table poison as
select *
from teguh.spawn_task(
  'q', 'poison', '{}',
  '{"retry_strategy": {"kind": "exponential", "base_seconds": 1e-307, "factor": 1e6}}'
);
select teguh.claim_task('q', 'w');
update teguh.t_q set failures = 52;
create temporary table good as select * from teguh.spawn_task('q', 'good', '{}');

-- When its lease expires
set teguh.fake_now = '2100-01-01 00:00+00';

-- Then
select lives_ok(
  $$ select * from teguh.claim_task('q', 'w', 30, 10) $$,
  'one bad row can never stop a queue: the claim that ends its run lives'
);

select is(
  (select r.state from teguh.get_task_result('q', (select task_id from good)) as r), 'running',
  'a poison option does not keep others from being claimed'
);

-- Given names of strategies
-- Then
select throws_ok(
  $$ select teguh._check_retry_strategy('{"kind": "cubic"}') $$,
  'TG005', null,
  'a kind that is not known is refused'
);

select lives_ok(
  $$ select teguh._check_retry_strategy(null) $$,
  'no strategy is the default strategy'
);

-- Given the hash behind the jitter
-- Then
select ok(
  bool_and(teguh._fraction(n::text) >= 0 and teguh._fraction(n::text) < 1),
  'a fraction lies between 0 and 1'
)
from generate_series(1, 1000) as n;

select ok(
  avg(teguh._fraction(n::text)) between 0.45 and 0.55,
  'fractions spread evenly'
)
from generate_series(1, 1000) as n;

select * from finish();
rollback;
