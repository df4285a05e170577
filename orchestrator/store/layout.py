"""The layout of a run in Redis: the one list of its fields, which Python and the scripts both read.

The field ``run`` of a run's hash is a msgpack array of these, in this order. New ones are appended: a release finds what it
knows where it was, and keeps what it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

TEXT = "text"
MOMENT = "moment"
NUMBER = "number"

FIELDS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("state", "label", "message"), TEXT),
        "at": MOMENT,
        **dict.fromkeys(("place", "gate", "msg"), TEXT),
        **dict.fromkeys(("attempt", "starts", "crashes", "budget", "prio", "due"), NUMBER),
        **dict.fromkeys(("ready", "created", "started", "ended", "expires", "reserved"), MOMENT),
        **dict.fromkeys(("pool", "queue", "dep", "sched", "flow", "tags", "kind", "name", "parent", "by", "idem"), TEXT),
        **dict.fromkeys(("worker", "outcome", "gates", "calls", "share", "beside", "entry"), TEXT),
    }
)
"""Name of a field -> its kind. A text or a moment that a run has not is ''; a moment is in ms."""

PLACES: Mapping[str, int] = MappingProxyType({name: place for place, name in enumerate(FIELDS)})
"""Name of a field -> where it stands in the array, from 0."""

ABSENT = tuple(0 if kind == NUMBER else "" for kind in FIELDS.values())
"""The array of a run that has nothing."""

LATEST = 10**16
"""No number or moment of a run reaches it."""


def may_hold(kind: str, value: object) -> bool:
    """Whether a field of that kind may hold the value."""
    if kind == TEXT or value == "":
        return kind != NUMBER and type(value) is str
    return isinstance(value, int | float) and type(value) is not bool and 0 <= value < LATEST


def as_lua() -> str:
    """Functions for the scripts: whether an array holds a run (or an error), the run of it, and the array of a run.

    And for people: what is wrong with an array that holds none, and what stands in it.
    """
    places = list(enumerate(FIELDS.items(), 1))
    # Asking for types takes five times as long as errors, which the caller catches: a number has no length, and what is neither
    # number nor text cannot be joined; nothing else can be compared with a number.
    texts = [f"v[{i}]" for i, (_, kind) in places if kind == TEXT]
    checks = {NUMBER: "v[{i}] >= 0 and v[{i}] < latest", MOMENT: "(v[{i}] == '' or v[{i}] >= 0 and v[{i}] < latest)"}
    numbers = " and ".join(checks[kind].format(i=i) for i, (_, kind) in places if kind != TEXT)
    lengths = " + ".join(f"#{text}" for text in texts)
    joined = " ".join(f"_ = {text} .. ''" for text in texts)
    run = ", ".join(f"{name} = v[{i}]" for i, (name, _) in places)
    array = ", ".join(f"run.{name}" for name in FIELDS)
    newer = len(FIELDS) + 1
    names = ", ".join(f"{{'{name}', '{kind}'}}" for name, kind in FIELDS.items())
    return f"""
local function is_run(v)
  local latest, _ = {LATEST}
  {joined}
  return {lengths} >= 0 and {numbers}
end
local function run_of(id, v) return {{id = id, key = prefix .. 'run:' .. id, newer = v[{newer}] and v, {run}}} end
local function array_of(run)
  local v = {{{array}}}
  if run.newer then
    for i = {newer}, #run.newer do v[i] = run.newer[i] end
  end
  return v
end
local function describe(v)
  local wrong, shown = nil, {{}}
  for i, field in ipairs({{{names}}}) do
    local name, kind, value = field[1], field[2], v[i]
    local is_text = type(value) == 'string' and (kind == 'text' or kind == 'moment' and value == '')
    local is_number = kind ~= 'text' and type(value) == 'number' and value >= 0 and value < {LATEST}
    if not is_text and not is_number then wrong = wrong or 'its ' .. name .. ' is no ' .. kind end
    if value and value ~= '' then shown[#shown + 1] = name .. '=' .. string.sub(tostring(value), 1, 200) end
  end
  return wrong, table.concat(shown, ' ')
end
"""
