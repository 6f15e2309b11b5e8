-- Refuse a retry strategy that could not be carried out.  Null is the default
-- strategy.
create or replace function teguh._check_retry_strategy(p_strategy jsonb)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_kind text;
begin
  if p_strategy is null or p_strategy = 'null' then
    return;
  end if;

  perform teguh._check_keys('retry strategy', p_strategy, array[
    'kind', 'base_seconds', 'factor', 'max_seconds', 'jitter'
  ]);
  perform teguh._number_option(p_strategy, 'base_seconds', 0, 1e12);
  perform teguh._number_option(p_strategy, 'factor', 0, 1e6);
  perform teguh._number_option(p_strategy, 'max_seconds', 0, 1e12);
  perform teguh._number_option(p_strategy, 'jitter', 0, 1);

  v_kind := teguh._text_option(p_strategy, 'kind');
  if v_kind is null
    or v_kind not in ('none', 'fixed', 'exponential', 'linear', 'quadratic')
  then
    raise exception 'unknown retry strategy "%"', left(coalesce(v_kind, 'null'), 200)
      using
        errcode = 'TG005',
        detail = 'Known kinds: none, fixed, exponential, linear, quadratic.',
        hint = 'For instance {"kind": "fixed", "base_seconds": 10}.';
  end if;
end;
$$;

-- Seconds to wait before the run that follows this many failures.  Without a
-- strategy: exponential, base 1, factor 2, cap 300, jitter 0.1.  The jitter is a
-- hash of task and failures, so the same failure always waits as long.  Grows to
-- the cap and stays there: nothing overflows, however many failures there are.
create or replace function teguh._backoff(
  p_strategy jsonb,
  p_failures integer,
  p_task_id  uuid
)
  returns double precision
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_kind   text := coalesce(p_strategy ->> 'kind', 'exponential');
  v_base   double precision := (p_strategy ->> 'base_seconds')::double precision;
  v_factor double precision := coalesce((p_strategy ->> 'factor')::double precision, 2);
  v_most   double precision := coalesce(
    (p_strategy ->> 'max_seconds')::double precision,
    case when p_strategy is null then 300 else 1e9 end
  );
  v_jitter double precision := coalesce(
    (p_strategy ->> 'jitter')::double precision,
    case when p_strategy is null then 0.1 else 0 end
  );
  v_delay  double precision;
begin
  if v_kind = 'none' then
    return 0;
  elsif v_kind = 'fixed' then
    v_delay := coalesce(v_base, 60);
  elsif v_kind in ('linear', 'quadratic') then
    v_delay := coalesce(v_base, 30) * p_failures::double precision
               * case v_kind when 'linear' then 1 else p_failures end;
  else
    v_base := coalesce(v_base, case when p_strategy is null then 1 else 30 end);
    -- v_base * v_factor ^ (p_failures - 1), by way of logarithms: power() overflows, and
    -- exp() raises when it underflows
    v_delay := case
      when v_base = 0 then 0
      else exp(greatest(
        least(
          ln(v_base) + (p_failures - 1) * ln(greatest(v_factor, 1e-12)),
          ln(1e12::double precision)
        ),
        -600
      ))
    end;
  end if;

  v_delay := least(v_delay, v_most);
  return v_delay * (1 - v_jitter * teguh._fraction(p_task_id::text || p_failures));
end;
$$;

-- A number from 0 up to 1 that is always the same for the same text.
create or replace function teguh._fraction(p_text text)
  returns double precision
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return (hashtextextended(p_text, 0) & 1048575) / 1048576.0::double precision;
end;
$$;
