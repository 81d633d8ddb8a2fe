"""Benchmarks of every op against torch's, compiled and not, and against what no one can leave out.

An optimizer's step is timed by the same parts, but `steps`, `step_providers` and `verify_steps`
say what is stepped, by whom, and what is right: it writes many tensors and returns none.

`python -m bench` times, writes `bench/out/` and reports; `pytest bench` times only. The parts, in
the order in which a run passes through them:

- `profiles`: how much to time; `providers`: what; `peers`: other libraries, `libraries`: which of
  them are there; `verify`: that it is right before it is timed;
- `timing`: rounds in which the providers take turns; `neighbours`: whether others were busy then;
  `memory`: what forward keeps for backward;
- `measure`: all of that for one op, dtype and size; `conftest`: hands it to pytest-benchmark;
- `summary`: from pytest-benchmark's JSON to the figures of a run;
- `rows`, `headlines`, `fits`: who is compared with whom, what it comes to, and what calls cost;
- `report`: writes it all, and never times: `page` with `cells`, `scaling`, `plots`, `svg`,
  `palette` and `templates/`; `overview`; `markdown`; `tables` for a terminal; `wording` of all;
- `thresholds`, `check`: the goals that a run must meet, and which it does;
- `moves`, `compare`: what moved from one run to another beyond noise;
- `readme`: the README's figures, of the committed runs.
"""
