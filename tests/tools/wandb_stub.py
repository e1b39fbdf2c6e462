"""A small local stub of the W&B server, so that tests run the real client without an account.

    with StubServer(folder) as stub:               # a thread of this process, on 127.0.0.1
        subprocess.run([...], env={**os.environ, **stub.env()})
        rows = stub.history("stub/PROJECT/RUN_ID")
        stub.fault(kind="drop", match="file_stream", seconds=10)

It knows runs, resuming, files, artifacts with aliases, the public API's reads, sweeps (grid and random; bayes is served
as random) and agents with preemption; no reports, registries, launch or teams.  Kept in the folder: state.json,
requests.jsonl, graphql.jsonl, runs/, artifacts/, blobs/, sweeps/; unresolved.jsonl (fields asked for that it does not
know) and errors.jsonl exist only if a client asked for something new: tests assert that they do not.

Written for wandb 0.31.0.  It is not a security boundary: any key is accepted.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import json
import math
import os
import random
import re
import socket
import string
import threading
import time
import urllib.parse
import urllib.request
import zlib
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# --------------------------------------------------------------------------
# A GraphQL reader and executor, as much as the client's documents need.

_TOKEN = re.compile(
    r'"""(?P<block>.*?)"""|"(?P<str>(?:\\.|[^"\\])*)"|(?P<punct>\.\.\.|[!$():=@\[\]{}|&])'
    r"|(?P<num>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(?P<name>[_A-Za-z]\w*)|#[^\n]*|[\s,\ufeff]+",
    re.S,
)


class GQLSyntax(ValueError):
    pass


class Var(str):
    """A variable reference inside arguments."""


class Parser:
    def __init__(self, text):
        self.tokens, pos = [], 0
        while pos < len(text):
            m = _TOKEN.match(text, pos)
            if not m:
                raise GQLSyntax(f"unexpected {text[pos]!r} at {pos}")
            pos = m.end()
            if m.lastgroup:
                self.tokens.append((m.lastgroup, m.group(m.lastgroup)))
        self.i = 0

    def peek(self):
        return self.tokens[self.i] if self.i < len(self.tokens) else (None, None)

    def take(self, value=None):
        kind, got = self.peek()
        if kind is None or (value is not None and got != value):
            raise GQLSyntax(f"expected {value!r}, got {got!r}")
        self.i += 1
        return kind, got

    def at(self, value):
        kind, got = self.peek()
        return kind in ("punct", "name") and got == value

    def document(self):
        operations, fragments = [], {}
        while self.peek()[0]:
            if self.at("fragment"):
                self.take()
                name = self.take()[1]
                self.take("on")
                fragments[name] = (self.take()[1], self.directives(), self.selections())
            else:
                kind, name, defaults = "query", None, {}
                if not self.at("{"):
                    kind = self.take()[1]
                    if self.peek()[0] == "name":
                        name = self.take()[1]
                    if self.at("("):
                        defaults = self.variables()
                    self.directives()
                operations.append((kind, name, defaults, self.selections()))
        return operations, fragments

    def variables(self):
        self.take("(")
        out = {}
        while not self.at(")"):
            self.take("$")
            name = self.take()[1]
            self.take(":")
            self.type()
            if self.at("="):
                self.take()
                out[name] = self.value()
        self.take(")")
        return out

    def type(self):
        if self.at("["):
            self.take()
            self.type()
            self.take("]")
        else:
            self.take()
        if self.at("!"):
            self.take()

    def value(self):
        kind, got = self.take()
        if kind == "str":
            return json.loads(f'"{got}"')
        if kind == "block":
            return got
        if kind == "num":
            return json.loads(got)
        if kind == "name":
            return {"true": True, "false": False, "null": None}.get(got, got)
        if got == "$":
            return Var(self.take()[1])
        if got == "[":
            out = []
            while not self.at("]"):
                out.append(self.value())
            self.take("]")
            return out
        if got == "{":
            out = {}
            while not self.at("}"):
                key = self.take()[1]
                self.take(":")
                out[key] = self.value()
            self.take("}")
            return out
        raise GQLSyntax(f"bad value {got!r}")

    def arguments(self):
        out = {}
        if self.at("("):
            self.take()
            while not self.at(")"):
                key = self.take()[1]
                self.take(":")
                out[key] = self.value()
            self.take(")")
        return out

    def directives(self):
        out = []
        while self.at("@"):
            self.take()
            out.append((self.take()[1], self.arguments()))
        return out

    def selections(self):
        self.take("{")
        out = []
        while not self.at("}"):
            if self.at("..."):
                self.take()
                if self.at("{") or self.at("@"):
                    out.append(("inline", None, self.directives(), self.selections()))
                elif self.at("on"):
                    self.take()
                    name = self.take()[1]
                    out.append(("inline", name, self.directives(), self.selections()))
                else:
                    out.append(("spread", self.take()[1], self.directives(), None))
                continue
            name = alias = self.take()[1]
            if self.at(":"):
                self.take()
                name = self.take()[1]
            args, directives = self.arguments(), self.directives()
            sub = self.selections() if self.at("{") else None
            out.append(("field", (alias, name, args), directives, sub))
        self.take("}")
        return out


_INTERFACES = {"ArtifactCollection": {"ArtifactSequence", "ArtifactPortfolio"}}


class Executor:
    """Answers a parsed document from nested dicts; callables take (args)."""

    def __init__(self, fragments, variables, unresolved):
        self.fragments, self.vars, self.unresolved = fragments, variables, unresolved

    def arg(self, v):
        if isinstance(v, Var):
            return self.vars.get(v)
        if isinstance(v, list):
            return [self.arg(x) for x in v]
        if isinstance(v, dict):
            return {k: self.arg(x) for k, x in v.items()}
        return v

    def wanted(self, directives):
        for name, args in directives:
            on = bool(self.arg(args.get("if")))
            if (name == "include" and not on) or (name == "skip" and on):
                return False
        return True

    def run(self, obj, selections, path=""):
        if obj is None:
            return None
        if isinstance(obj, (list, tuple)):
            return [self.run(x, selections, path) for x in obj]
        out = {}
        self._collect(obj, selections, path, out)
        return out

    def _collect(self, obj, selections, path, out):
        for kind, what, directives, sub in selections:
            if not self.wanted(directives):
                continue
            if kind in ("inline", "spread"):
                on = what
                if kind == "spread":
                    on, _, sub = self.fragments[what]
                mine = obj.get("__typename")
                if on is None or mine is None or mine == on or mine in _INTERFACES.get(on, ()):
                    self._collect(obj, sub, path, out)
                continue
            alias, name, args = what
            if name not in obj:
                self.unresolved(f"{path}.{name}")
                out.setdefault(alias, None)
                continue
            value = obj[name]
            if callable(value):
                value = value({k: self.arg(v) for k, v in args.items()})
            if sub is not None:
                value = self.run(value, sub, f"{path}.{name}")
                if isinstance(value, dict) and isinstance(out.get(alias), dict):
                    value = {**out[alias], **value}
            out[alias] = value


class GQLError(Exception):
    """An error inside a GraphQL response with status 200 (or another status)."""

    def __init__(self, message, status=200):
        super().__init__(message)
        self.status = status


# --------------------------------------------------------------------------
# Sweep parameters: grid and random choice from a sweep config.


def _leaves(parameters, prefix=()):
    """(path, spec) for each parameter, nested `parameters:` flattened."""
    for name, spec in parameters.items():
        if isinstance(spec, dict) and "parameters" in spec:
            yield from _leaves(spec["parameters"], prefix + (name,))
        else:
            yield prefix + (name,), spec


def _nest(flat):
    """{('a','b'): 1} -> {'a': {'value': {'b': 1}}} (the agent's args form)."""
    out = {}
    for path, value in flat.items():
        if len(path) == 1:
            out[path[0]] = {"value": value}
        else:
            d = out.setdefault(path[0], {"value": {}})["value"]
            for p in path[1:-1]:
                d = d.setdefault(p, {})
            d[path[-1]] = value
    return out


def _round(x, q):
    r = round(x / q) * q
    return int(r) if isinstance(q, int) else round(r, 12)


def draw(spec, rng):
    """One value of a parameter spec, as W&B documents the distributions."""
    if not isinstance(spec, dict):
        raise GQLError(f"invalid parameter {spec!r}: must be a mapping")
    if "value" in spec:
        return spec["value"]
    if "values" in spec:
        p = spec.get("probabilities")
        return rng.choices(spec["values"], weights=p)[0]
    lo, hi, q = spec.get("min"), spec.get("max"), spec.get("q", 1)
    mu, sigma = spec.get("mu", 0), spec.get("sigma", 1)
    dist = spec.get("distribution")
    if dist is None:
        dist = "int_uniform" if isinstance(lo, int) and isinstance(hi, int) else "uniform"
    if dist == "int_uniform":
        return rng.randint(lo, hi)
    if dist == "uniform":
        return rng.uniform(lo, hi)
    if dist == "q_uniform":
        return _round(rng.uniform(lo, hi), q)
    if dist == "log_uniform":
        return math.exp(rng.uniform(lo, hi))
    if dist == "q_log_uniform":
        return _round(math.exp(rng.uniform(lo, hi)), q)
    if dist == "log_uniform_values":
        return math.exp(rng.uniform(math.log(lo), math.log(hi)))
    if dist == "q_log_uniform_values":
        return _round(math.exp(rng.uniform(math.log(lo), math.log(hi))), q)
    if dist == "inv_log_uniform_values":
        return 1 / math.exp(rng.uniform(math.log(1 / hi), math.log(1 / lo)))
    if dist == "normal":
        return rng.gauss(mu, sigma)
    if dist == "q_normal":
        return _round(rng.gauss(mu, sigma), q)
    if dist == "log_normal":
        return rng.lognormvariate(mu, sigma)
    if dist == "q_log_normal":
        return _round(rng.lognormvariate(mu, sigma), q)
    if dist == "beta":
        return rng.betavariate(spec.get("a", 1), spec.get("b", 1))
    raise GQLError(f"unknown distribution {dist!r}")


def grid(parameters):
    """Every combination; the first named parameter varies slowest."""
    names, choices = [], []
    for path, spec in _leaves(parameters):
        if "value" in spec:
            values = [spec["value"]]
        elif "values" in spec:
            values = list(spec["values"])
        elif spec.get("distribution") == "int_uniform" or (
            isinstance(spec.get("min"), int) and isinstance(spec.get("max"), int)
        ):
            values = list(range(spec["min"], spec["max"] + 1))
        elif spec.get("distribution") == "q_uniform":
            n = int((spec["max"] - spec["min"]) / spec["q"]) + 1
            values = [_round(spec["min"] + k * spec["q"], spec["q"]) for k in range(n)]
        else:
            raise GQLError(f"Invalid sweep config: grid search needs value/values for {'.'.join(path)}", 400)
        names.append(path)
        choices.append(values)
    for combo in itertools.product(*choices):
        yield dict(zip(names, combo, strict=True))


# --------------------------------------------------------------------------
# The backend's state.

_HISTORY, _EVENTS = "wandb-history.jsonl", "wandb-events.jsonl"
_SUMMARY, _LOG = "wandb-summary.json", "output.log"

FEATURES = [
    "LARGE_FILENAMES",
    "ARTIFACT_TAGS",
    "CLIENT_IDS",
    "ARTIFACT_COLLECTION_MEMBERSHIP_FILES",
    "USE_ARTIFACT_WITH_ENTITY_AND_PROJECT_INFORMATION",
    "PROJECT_ARTIFACT_COLLECTION_MEMBERSHIP",
    "TOTAL_COUNT_IN_FILE_CONNECTION",
]


def now_iso():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def b64id(kind, n):
    return base64.b64encode(f"{kind}:{n}".encode()).decode()


def connection(items, args=None, **extra):
    """A Relay-style page of `items` (dicts), cursor = index."""
    args = args or {}
    start = int(args.get("after") or 0)
    first = args.get("first")
    stop = len(items) if first is None else min(len(items), start + int(first))
    page = items[start:stop]
    return {
        "totalCount": len(items),
        "edges": [{"node": n, "cursor": str(start + k + 1), **extra} for k, n in enumerate(page)],
        "pageInfo": {
            "__typename": "PageInfo",
            "endCursor": str(stop),
            "hasNextPage": stop < len(items),
        },
    }


def _dig(obj, dotted):
    """Metric names may hold slashes and dots; nested dicts use dots."""
    if dotted in obj:
        return obj[dotted]
    for part in dotted.split("."):
        if not isinstance(obj, dict) or part not in obj:
            return None
        obj = obj[part]
    return obj


class Backend:
    def __init__(self, root, entity="stub", seed=0):
        self.root = Path(root).absolute()
        self.root.mkdir(parents=True, exist_ok=True)
        self.entity, self.lock = entity, threading.RLock()
        self.base_url = "http://127.0.0.1:0"
        self.rng = random.Random(seed)
        self.seed, self.faults, self._unresolved_seen = seed, [], set()
        self.state_file = self.root / "state.json"
        if self.state_file.exists():
            self.state = json.loads(self.state_file.read_text())
        else:
            self.state = {
                "next": 1,
                "projects": {},
                "runs": {},
                "sweeps": {},
                "agents": {},
                "artifacts": {},
                "manifests": {},
                "client_ids": {},
            }

    # -- storage helpers -----------------------------------------------------
    def save(self):
        tmp = self.state_file.with_suffix(".tmp")
        tmp.write_text(json.dumps(self.state, indent=1))
        tmp.replace(self.state_file)

    def append(self, name, record):
        with self.lock, open(self.root / name, "a") as f:
            f.write(json.dumps(record, default=str) + "\n")

    def number(self):
        n = self.state["next"]
        self.state["next"] = n + 1
        return n

    def unresolved(self, op):
        def note(path):
            key = (op, path)
            if key not in self._unresolved_seen:
                self._unresolved_seen.add(key)
                self.append("unresolved.jsonl", {"op": op, "field": path})

        return note

    def project(self, entity, name, create=True):
        entity, name = entity or self.entity, name or "uncategorized"
        key = f"{entity}/{name}"
        if key not in self.state["projects"]:
            if not create:
                return None
            n = self.number()
            self.state["projects"][key] = {
                "n": n,
                "id": b64id("Project", n),
                "entity": entity,
                "name": name,
                "createdAt": now_iso(),
            }
        return self.state["projects"][key]

    def find_run(self, entity, project, name):
        return self.state["runs"].get(f"{entity or self.entity}/{project or 'uncategorized'}/{name}")

    def run_dir(self, run):
        d = self.root / "runs" / run["entity"] / run["project"] / run["name"]
        d.mkdir(parents=True, exist_ok=True)
        return d

    def new_run(self, entity, project, name, **fields):
        p = self.project(entity, project)
        run = {
            "n": self.number(),
            "entity": p["entity"],
            "project": p["name"],
            "name": name,
            "displayName": fields.pop("displayName", None) or f"stub-run-{self.state['next'] - 1}",
            "state": "running",
            "config": {},
            "summary": {},
            "system": {},
            "tags": [],
            "notes": None,
            "group": None,
            "jobType": None,
            "sweep": None,
            "exitcode": None,
            "stopped": False,
            "preempting": False,
            "lines": {_HISTORY: 0, _EVENTS: 0, _LOG: 0},
            "files": {},
            "createdAt": now_iso(),
            "heartbeatAt": now_iso(),
            "program": None,
            "host": None,
            "commit": None,
            "used": [],
            "logged": [],
            "starts": 0,
            "description": None,
            **fields,
        }
        run["id"] = b64id("Run", f"v1:{name}:{p['name']}:{p['entity']}")
        self.state["runs"][f"{p['entity']}/{p['name']}/{name}"] = run
        return run

    def read_lines(self, run, name):
        f = self.run_dir(run) / {_HISTORY: "history.jsonl", _EVENTS: "events.jsonl"}.get(name, name)
        return f.read_text().splitlines() if f.exists() else []

    # -- views (what GraphQL fields resolve from) ------------------------------
    def v_entity(self, name):
        return {
            "id": b64id("Entity", name),
            "name": name,
            "isTeam": False,
            "organization": None,
            "user": None,
            "available": False,
            "defaultEntity": {"name": name},
            "projects": lambda a: connection(
                [self.v_project(p) for p in self.state["projects"].values() if p["entity"] == name], a
            ),
        }

    def v_user(self):
        return {
            "id": b64id("User", 1),
            "name": "Stub User",
            "username": self.entity,
            "entity": self.entity,
            "email": "stub@localhost",
            "admin": False,
            "flags": "{}",
            "deletedAt": None,
            "teams": {"edges": [{"node": {"name": self.entity}}]},
            "apiKeys": {"edges": []},
            "defaultEntity": {"name": self.entity},
        }

    def v_project(self, p):
        if p is None:
            return None
        e, n = p["entity"], p["name"]
        runs = lambda a: self.filtered_runs(e, n, a)  # noqa: E731
        return {
            "__typename": "Project",
            "id": p["id"],
            "internalId": str(p["n"]),
            "name": n,
            "entityName": e,
            "entity": self.v_entity(e),
            "createdAt": p["createdAt"],
            "isBenchmark": False,
            "readOnly": False,
            "description": None,
            "user": self.v_user(),
            "run": lambda a: self.v_run(self.find_run(e, n, a.get("name"))),
            "bucket": lambda a: self.v_run(self.find_run(e, n, a.get("name"))),
            "runs": lambda a: connection([self.v_run(r) for r in runs(a)], a),
            "runCount": lambda a: len(runs(a)),
            "sweep": lambda a: self.v_sweep(self.state["sweeps"].get(a.get("sweepName") or "")),
            "sweeps": lambda a: connection(
                [self.v_sweep(s) for s in self.state["sweeps"].values() if (s["entity"], s["project"]) == (e, n)], a
            ),
            "totalSweeps": lambda a: sum((s["entity"], s["project"]) == (e, n) for s in self.state["sweeps"].values()),
            "artifact": lambda a: self.v_artifact(self.lookup_artifact(e, n, a.get("name"))),
            "artifactCollectionMembership": lambda a: self.v_membership(self.lookup_artifact(e, n, a.get("name"))),
            "artifactCollection": lambda a: self.v_collection(e, n, a.get("name")),
            "artifactType": lambda a: self.v_type(e, n, a.get("name")),
            "artifactTypes": lambda a: connection(
                [self.v_type(e, n, t) for t in sorted({x["type"] for x in self.artifacts_of(e, n)})], a
            ),
        }

    def filtered_runs(self, e, n, args):
        """A project's runs, oldest first.  Filters and other orders are not supported."""
        if json.loads(args.get("filters") or "{}") or args.get("order") not in (None, "+created_at"):
            raise GQLError("stub: filters and orders of runs are not known", 400)
        return [r for r in self.state["runs"].values() if (r["entity"], r["project"]) == (e, n)]

    def v_run(self, r):
        if r is None:
            return None

        def tail(name):
            lines = self.read_lines(r, name)
            return json.dumps(lines[-1:])

        def history(a, name=_HISTORY):
            lines = self.read_lines(r, name)
            if a.get("minStep") is not None or a.get("maxStep") is not None:
                lo, hi = int(a.get("minStep") or 0), a.get("maxStep")
                hi = math.inf if hi is None else int(hi)
                lines = [x for x in lines if lo <= json.loads(x).get("_step", 0) < hi]
            n = a.get("samples")
            if n and len(lines) > n:
                lines = [lines[int(k * len(lines) / n)] for k in range(n)]
            return lines

        def sampled(a):
            specs = a.get("specs") or []
            specs = [specs] if isinstance(specs, (str, dict)) else specs
            out = []
            for spec in specs:
                spec = json.loads(spec) if isinstance(spec, str) else (spec or {})
                keys = spec.get("keys") or []
                rows = [json.loads(x) for x in self.read_lines(r, _HISTORY)]
                if keys:
                    rows = [{k: x[k] for k in keys if k in x} for x in rows if all(k in x for k in keys)]
                lo, hi = spec.get("minStep"), spec.get("maxStep")
                if lo is not None:
                    rows = [x for x in rows if x.get("_step", 0) >= lo]
                if hi is not None:  # inclusive, unlike history()
                    rows = [x for x in rows if x.get("_step", 0) <= hi]
                out.append(rows)
            return out

        def keys(_):
            rows = [json.loads(x) for x in self.read_lines(r, _HISTORY)]
            names = sorted({k for x in rows for k in x})
            return {
                "keys": {k: {"typeCounts": [{"type": "number", "count": sum(k in x for x in rows)}]} for k in names},
                "lastStep": max((x.get("_step", 0) for x in rows), default=0),
                "sets": [],
            }

        def files(a):
            names = a.get("names") or a.get("fileNames")
            items = [
                {
                    "__typename": "File",
                    "id": b64id("File", k),
                    "name": k,
                    "displayName": k,
                    "url": self.url("storage", "run", r["entity"], r["project"], r["name"], k),
                    "directUrl": self.url("storage", "run", r["entity"], r["project"], r["name"], k),
                    "sizeBytes": v["size"],
                    "mimetype": "application/octet-stream",
                    "updatedAt": v["t"],
                    "md5": v["md5"],
                    "digest": v["md5"],
                    "storagePath": k,
                }
                for k, v in r["files"].items()
                if not names or k in names
            ]
            return connection(items, a)

        running = r["state"] == "running"
        return {
            "__typename": "Run",
            "id": r["id"],
            "name": r["name"],
            "displayName": r["displayName"],
            "projectId": str(self.project(r["entity"], r["project"])["n"]),
            "project": lambda a: self.v_project(self.project(r["entity"], r["project"])),
            "config": json.dumps(r["config"]),
            "summaryMetrics": json.dumps(r["summary"]),
            "systemMetrics": json.dumps(r["system"]),
            "state": r["state"],
            "tags": r["tags"],
            "notes": r["notes"],
            "group": r["group"],
            "jobType": r["jobType"],
            "commit": r["commit"],
            "sweepName": r["sweep"],
            "readOnly": False,
            "createdAt": r["createdAt"],
            "heartbeatAt": r["heartbeatAt"],
            "description": r["description"],
            "user": self.v_user(),
            "historyLineCount": r["lines"][_HISTORY],
            "eventsLineCount": r["lines"][_EVENTS],
            "logLineCount": r["lines"][_LOG],
            "historyTail": tail(_HISTORY),
            "eventsTail": tail(_EVENTS),
            "wandbConfig": lambda a: json.dumps(
                {
                    k: v
                    for k, v in ((r["config"].get("_wandb") or {}).get("value") or {}).items()
                    if k in (a.get("keys") or [])
                }
            ),
            "history": history,
            "events": lambda a: history(a, _EVENTS),
            "sampledHistory": sampled,
            "historyKeys": keys,
            "parquetHistory": lambda a: {
                "parquetUrls": [],
                "liveData": [json.loads(x) for x in self.read_lines(r, _HISTORY)],
            },
            "stopped": r["stopped"],
            "shouldStop": r["stopped"],
            "exitcode": r["exitcode"],
            "failed": r["state"] == "failed",
            "running": running,
            "files": files,
            "host": r["host"],
            "fileCount": len(r["files"]),
            "outputArtifacts": lambda a: connection(
                [self.v_artifact(self.state["artifacts"][i]) for i in r["logged"] if i in self.state["artifacts"]], a
            ),
            "inputArtifacts": lambda a: connection(
                [self.v_artifact(self.state["artifacts"][i]) for i in r["used"] if i in self.state["artifacts"]], a
            ),
            "sweep": lambda a: self.v_sweep(self.state["sweeps"].get(r["sweep"] or "")),
        }

    def sweep_runs(self, s):
        runs = [self.find_run(s["entity"], s["project"], i) for i in s["runs"]]
        return [r for r in runs if r]

    def v_sweep(self, s):
        if s is None:
            return None
        runs = self.sweep_runs(s)
        metric = (s["parsed"].get("metric") or {}).get("name")
        goal = (s["parsed"].get("metric") or {}).get("goal", "minimize")
        values = (
            [v for v in (_dig(r["summary"], metric) for r in runs) if isinstance(v, (int, float))] if metric else []
        )
        return {
            "__typename": "Sweep",
            "id": s["id"],
            "name": s["name"],
            "method": s["parsed"].get("method"),
            "displayName": s["displayName"],
            "state": s["state"],
            "description": s["description"],
            "config": s["config"],
            "createdAt": s["createdAt"],
            "updatedAt": s["createdAt"],
            "heartbeatAt": s["createdAt"],
            "earlyStopJobRunning": False,
            "controller": s["controller"],
            "scheduler": s["scheduler"],
            "user": self.v_user(),
            "bestLoss": (max if goal == "maximize" else min)(values) if values else None,
            "runCount": len(runs),
            "runCountExpected": s["expected"],
            "prevRunCount": 0,
            "project": lambda a: self.v_project(self.project(s["entity"], s["project"])),
            "runs": lambda a: connection([self.v_run(r) for r in runs], a),
            "agents": lambda a: connection(
                [
                    {"id": i, "name": i, "host": g["host"], "state": "RUNNING"}
                    for i, g in self.state["agents"].items()
                    if g["sweep"] == s["name"]
                ],
                a,
            ),
        }

    # -- artifacts -------------------------------------------------------------
    def artifacts_of(self, e, p, collection=None, type_=None):
        return [
            a
            for a in self.state["artifacts"].values()
            if (a["entity"], a["project"]) == (e, p)
            and a["state"] == "COMMITTED"
            and (collection is None or a["collection"] == collection)
            and (type_ is None or a["type"] == type_)
        ]

    def lookup_artifact(self, e, p, name):
        if not name:
            return None
        name = name.split("/")[-1]
        collection, _, alias = name.partition(":")
        alias = alias or "latest"
        for a in self.artifacts_of(e, p, collection):
            if alias in a["aliases"] or alias == f"v{a['version']}" or alias == a["digest"]:
                return a
        return None

    def url(self, *parts):
        return self.base_url + "/" + "/".join(urllib.parse.quote(str(p), safe="/") for p in parts)

    def v_artifact(self, a):
        if a is None:
            return None
        seq = self.v_collection(a["entity"], a["project"], a["collection"], a["type"])
        run = self.find_run(a["entity"], a["project"], a["run"]) if a["run"] else None
        return {
            "__typename": "Artifact",
            "id": a["id"],
            "state": a["state"],
            "digest": a["digest"],
            "digestAlgorithm": "MANIFEST_MD5",
            "versionIndex": a["version"],
            "artifactType": {"__typename": "ArtifactType", "id": b64id("Type", a["type"]), "name": a["type"]},
            "artifactSequence": seq,
            "description": a["description"],
            "metadata": a["metadata"],
            "ttlDurationSeconds": a["ttl"] if a["ttl"] is not None else -2,
            "ttlIsInherited": a["ttl"] is None,
            "tags": [{"__typename": "Tag", "id": b64id("Tag", t), "name": t} for t in a["tags"]],
            "historyStep": a["historyStep"],
            "size": a["size"],
            "commitHash": a["digest"][:20],
            "fileCount": len(a["files"]),
            "createdAt": a["createdAt"],
            "updatedAt": a["createdAt"],
            "aliases": [
                {
                    "__typename": "ArtifactAlias",
                    "id": b64id("Alias", f"{a['id']}:{x}"),
                    "alias": x,
                    "artifactCollection": seq,
                    "artifactCollectionName": a["collection"],
                }
                for x in a["aliases"] + [f"v{a['version']}"]
            ],
            "currentManifest": None
            if not a["manifest"]
            else {
                "__typename": "ArtifactManifest",
                "id": a["manifest"],
                "file": {"id": a["manifest"], "directUrl": self.url("storage", "manifest", a["n"])},
            },
            "files": lambda args: self.v_files(a, args),
            "filesByManifestEntries": lambda args: self.v_files(a, args),
            "createdBy": self.v_run(run),
            "usedBy": lambda args: connection(
                [self.v_run(r) for r in self.state["runs"].values() if a["id"] in r["used"]], args
            ),
            "artifactMemberships": lambda args: connection([self.v_membership(a)], args),
        }

    def v_files(self, a, args):
        names = args.get("names")
        items = [
            {
                "__typename": "File",
                "id": b64id("File", k),
                "name": k,
                "displayName": k,
                "directUrl": self.url("storage", "blob", v["md5hex"]),
                "url": self.url("storage", "blob", v["md5hex"]),
                "sizeBytes": v["size"],
                "storagePath": k,
                "mimetype": "application/octet-stream",
                "updatedAt": a["createdAt"],
                "digest": v["md5"],
                "md5": v["md5"],
            }
            for k, v in a["files"].items()
            if not names or k in names
        ]
        return connection(items, args)

    def v_collection(self, e, p, name, type_=None):
        arts = self.artifacts_of(e, p, name)
        if not arts and type_ is None:
            return None
        type_ = type_ or arts[0]["type"]
        proj = self.project(e, p)
        latest = next((a for a in arts if "latest" in a["aliases"]), None)

        def aliases(a):
            known = [x for art in arts for x in art["aliases"]]
            return connection([{"__typename": "ArtifactAlias", "id": x, "alias": x} for x in known], a)

        def artifacts(args):
            f = json.loads(args.get("filters") or "{}")
            got = [a for a in arts if f.get("state") in (None, a["state"])]
            got = sorted(got, key=lambda a: -a["version"])
            c = connection([self.v_artifact(a) for a in got], args)
            for edge in c["edges"]:
                edge["version"] = f"v{edge['node']['versionIndex']}"
            return c

        return {
            "__typename": "ArtifactSequence",
            "id": b64id("ArtifactSequence", f"{e}/{p}/{name}"),
            "name": name,
            "description": None,
            "createdAt": now_iso(),
            "updatedAt": now_iso(),
            "project": {
                "__typename": "Project",
                "id": proj["id"],
                "internalId": str(proj["n"]),
                "name": p,
                "entity": {"name": e},
                "entityName": e,
            },
            "type": {"name": type_},
            "defaultArtifactType": {"name": type_},
            "latestArtifact": {"id": latest["id"]} if latest else None,
            "state": "READY",
            "artifacts": artifacts,
            "aliases": aliases,
            "tags": connection([]),
            "artifactMembership": lambda args: self.v_membership(
                self.lookup_artifact(e, p, f"{name}:{args.get('aliasName')}")
            ),
            "artifactMemberships": lambda args: connection([self.v_membership(a) for a in arts], args),
        }

    def v_membership(self, a):
        if a is None:
            return None
        va = self.v_artifact(a)
        return {
            "__typename": "ArtifactCollectionMembership",
            "id": b64id("Membership", a["n"]),
            "versionIndex": a["version"],
            "createdAt": a["createdAt"],
            "aliases": va["aliases"],
            "artifactCollection": va["artifactSequence"],
            "artifact": va,
            "files": lambda args: self.v_files(a, args),
        }

    def v_type(self, e, p, name):
        arts = self.artifacts_of(e, p, type_=name)
        if not arts:
            return None
        names = sorted({a["collection"] for a in arts})
        return {
            "__typename": "ArtifactType",
            "id": b64id("Type", name),
            "name": name,
            "description": None,
            "createdAt": arts[0]["createdAt"],
            "artifactCollection": lambda a: self.v_collection(e, p, a.get("name")),
            "artifactCollections": lambda a: connection([self.v_collection(e, p, n) for n in names], a),
            "artifactSequence": lambda a: self.v_collection(e, p, a.get("name")),
        }

    def give_aliases(self, art, aliases):
        for x in aliases:
            for other in self.state["artifacts"].values():
                if (
                    other is not art
                    and x in other["aliases"]
                    and all(other[k] == art[k] for k in ("entity", "project", "collection"))
                ):
                    other["aliases"].remove(x)
            if x not in art["aliases"] and not re.fullmatch(r"v\d+", x):
                art["aliases"].append(x)

    # -- the GraphQL roots --------------------------------------------------------
    def query_root(self):
        def proj(a):
            return self.v_project(self.project(a.get("entityName"), a.get("name"), create=False))

        return {
            "viewer": lambda a: self.v_user(),
            "project": proj,
            "model": proj,
            "models": lambda a: connection(
                [
                    self.v_project(p)
                    for p in self.state["projects"].values()
                    if p["entity"] == (a.get("entityName") or self.entity)
                ],
                a,
            ),
            "entity": lambda a: self.v_entity(a.get("name") or self.entity),
            "organization": None,
            "artifact": lambda a: self.v_artifact(self.state["artifacts"].get(a.get("id") or "")),
            "clientIDMapping": lambda a: (
                {"serverID": self.state["client_ids"].get(a.get("clientID"))}
                if a.get("clientID") in self.state["client_ids"]
                else None
            ),
            "serverInfo": {
                "cliVersionInfo": {"min_cli_version": "0.0.1", "max_cli_version": "999.0.0"},
                "latestLocalVersionInfo": None,
                "features": [{"__typename": "ServerFeature", "name": f, "isEnabled": True} for f in FEATURES],
                "frontendHost": self.base_url,
            },
        }

    def mutation_root(self):
        def m(fn):
            return lambda a: fn(a.get("input") or {})

        return {name[2:]: m(getattr(self, name)) for name in dir(self) if name.startswith("m_")}

    def m_upsertBucket(self, i):
        run = None
        if i.get("id"):
            run = next((r for r in self.state["runs"].values() if r["id"] == i["id"]), None)
        name = (
            i.get("name")
            or (run and run["name"])
            or "".join(random.choices(string.ascii_lowercase + string.digits, k=8))
        )
        run = run or self.find_run(i.get("entityName"), i.get("modelName"), name)
        inserted = run is None
        if run is None:
            run = self.new_run(i.get("entityName"), i.get("modelName"), name)
        for src, dst in (
            ("displayName", "displayName"),
            ("groupName", "group"),
            ("jobType", "jobType"),
            ("notes", "notes"),
            ("tags", "tags"),
            ("commit", "commit"),
            ("host", "host"),
            ("jobProgram", "program"),
            ("description", "description"),
        ):
            if i.get(src) is not None:
                run[dst] = i[src]
        if i.get("config") is not None:
            run["config"].update(json.loads(i["config"]))
        if i.get("summaryMetrics") is not None:
            run["summary"].update(json.loads(i["summaryMetrics"]))
        if i.get("sweep"):
            run["sweep"] = i["sweep"]
            s = self.state["sweeps"].get(i["sweep"])
            if s and name not in s["runs"]:
                s["runs"].append(name)
        if i.get("state") in ("running", "finished", "failed", "crashed", "pending"):
            run["state"] = i["state"]
        elif i.get("host") and run["state"] != "running":  # a start or a resume
            run["state"], run["exitcode"], run["preempting"] = "running", None, False
        if i.get("host"):
            run["starts"] += 1
        run["heartbeatAt"] = now_iso()
        return {"bucket": self.v_run(run), "inserted": inserted}

    def m_createRunFiles(self, i):
        run = self.find_run(i.get("entityName"), i.get("projectName"), i.get("runName"))
        if run is None:
            raise GQLError("run not found", 404)
        return {
            "runID": run["id"],
            "uploadHeaders": [],
            "files": [
                {"name": f, "uploadUrl": self.url("storage", "run", run["entity"], run["project"], run["name"], f)}
                for f in i.get("files") or []
            ],
        }

    def m_markRunFilesUploaded(self, i):
        return {"success": True}

    def m_deleteRun(self, i):
        for k, r in list(self.state["runs"].items()):
            if r["id"] == i.get("id"):
                del self.state["runs"][k]
        return {"clientMutationId": None}

    # sweeps
    def m_upsertSweep(self, i):
        s = next((x for x in self.state["sweeps"].values() if i.get("id") in (x["id"], x["name"])), None)
        warnings = []
        if s is None:
            p = self.project(i.get("entityName"), i.get("projectName"))
            name = "".join(self.rng.choices(string.ascii_lowercase + string.digits, k=8))
            s = {
                "id": b64id("Sweep", f"v1:{name}:{p['name']}:{p['entity']}"),
                "name": name,
                "entity": p["entity"],
                "project": p["name"],
                "state": "PENDING",
                "config": "",
                "parsed": {},
                "displayName": None,
                "description": None,
                "createdAt": now_iso(),
                "controller": None,
                "scheduler": None,
                "runs": [],
                "served": 0,
                "expected": None,
                "bands": {},
            }
            self.state["sweeps"][name] = s
        if i.get("config") is not None:
            import yaml

            parsed = yaml.safe_load(i["config"]) or {}
            if parsed.get("method") not in ("grid", "random", "bayes", "custom"):
                raise GQLError("Invalid sweep config: method must be grid, random or bayes", 400)
            if parsed["method"] == "bayes":
                warnings.append("stub: bayes is served as random")
                if not (parsed.get("metric") or {}).get("name"):
                    raise GQLError("Invalid sweep config: bayes needs metric.name", 400)
            known = {
                "method",
                "metric",
                "parameters",
                "program",
                "command",
                "name",
                "description",
                "project",
                "entity",
                "early_terminate",
                "run_cap",
                "controller",
                "settings",
                "prior_runs",
                "imageuri",
                "job",
                "method_config",
            }
            warnings += [f"unknown key {k}" for k in sorted(set(parsed) - known)]
            s["config"], s["parsed"], s["displayName"] = i["config"], parsed, parsed.get("name")
            s["expected"] = len(list(grid(parsed.get("parameters", {})))) if parsed["method"] == "grid" else None
            d = self.root / "sweeps" / s["name"]
            d.mkdir(parents=True, exist_ok=True)
            (d / "config.yaml").write_text(i["config"])
        for k in ("controller", "scheduler", "description", "displayName", "state"):
            if i.get(k) is not None:
                s[k] = i[k]
        return {"sweep": self.v_sweep(s), "configValidationWarnings": warnings}

    def m_createAgent(self, i):
        s = self.state["sweeps"].get(i.get("sweep") or "")
        if s is None:
            raise GQLError("sweep not found", 404)
        agent_id = b64id("Agent", self.number())
        self.state["agents"][agent_id] = {
            "sweep": s["name"],
            "host": i.get("host"),
            "runs": [],
            "heartbeats": 0,
            "exit_sent": False,
        }
        if s["state"] == "PENDING":
            s["state"] = "RUNNING"
        return {"agent": {"id": agent_id, "name": i.get("host")}}

    def m_agentHeartbeat(self, i):
        agent = self.state["agents"].get(i.get("id") or "")
        s = self.state["sweeps"].get(agent["sweep"]) if agent else None
        if s is None:
            raise GQLError("sweep or agent not found", 404)
        agent["heartbeats"] += 1
        running = [k for k, v in json.loads(i.get("runState") or "{}").items() if v]
        for name in agent["runs"]:  # gone without telling us
            r = self.find_run(s["entity"], s["project"], name)
            if r and name not in running and r["state"] in ("running", "pending"):
                r["missed"] = r.get("missed", 0) + 1
                if r["stopped"] or r["missed"] >= 3:
                    r["state"] = "killed" if r["stopped"] else "crashed"
        commands = []
        for name in running:
            r = self.find_run(s["entity"], s["project"], name)
            if r and r["stopped"]:
                commands.append({"type": "stop", "run_id": name})
        if not running:
            if s["state"] in ("CANCELED", "CANCELLED", "FINISHED"):
                commands.append({"type": "exit"})
            elif s["state"] == "RUNNING":
                name, args = self.next_trial(s)
                if args is None:
                    s["state"] = "FINISHED"
                    commands.append({"type": "exit"})
                else:
                    agent["runs"].append(name)
                    commands.append(
                        {"type": "run", "run_id": name, "args": args, "program": s["parsed"].get("program"), "logs": []}
                    )
        elif s["state"] in ("CANCELED", "CANCELLED"):
            commands += [{"type": "stop", "run_id": n} for n in running]
        return {"agent": {"id": i["id"]}, "commands": json.dumps(commands)}

    def next_trial(self, s):
        for r in self.sweep_runs(s):  # preempted runs go back to the queue
            if r["state"] == "preempted":
                r["state"], r["preempting"] = "pending", False
                return r["name"], {k: v for k, v in r["config"].items() if k != "_wandb"}
        cap, k = s["parsed"].get("run_cap"), s["served"]
        if cap and k >= cap:
            return None, None
        parameters = s["parsed"].get("parameters") or {}
        if s["parsed"].get("method") == "grid":
            flat = next(itertools.islice(grid(parameters), k, None), None)
        else:
            rng = random.Random(f"{self.seed}:{s['name']}:{k}")
            flat = {path: draw(spec, rng) for path, spec in _leaves(parameters)}
        if flat is None:
            return None, None
        s["served"] = k + 1
        name = "".join(self.rng.choices(string.ascii_lowercase + string.digits, k=8))
        args = _nest(flat)
        run = self.new_run(
            s["entity"],
            s["project"],
            name,
            sweep=s["name"],
            displayName=f"{s['displayName'] or 'stub'}-sweep-{k + 1}",
            state="pending",
        )
        run["config"] = dict(args)
        s["runs"].append(name)
        return name, args

    # artifacts
    def m_createArtifact(self, i):
        e, p = i.get("entityName") or self.entity, i.get("projectName")
        name = (
            i["artifactCollectionNames"][0] if i.get("artifactCollectionNames") else (i.get("artifactCollectionName"))
        )
        self.project(e, p)
        aliases = [x["alias"] for x in i.get("aliases") or []]
        same = (
            next((a for a in self.artifacts_of(e, p, name) if a["digest"] == i.get("digest")), None)
            if i.get("enableDigestDeduplication")
            else None
        )
        run = self.find_run(e, p, i.get("runName")) if i.get("runName") else None
        if same:
            self.give_aliases(same, aliases + ["latest"])
            art = same
        else:
            other = next((a for a in self.artifacts_of(e, p, name) if a["type"] != i.get("artifactTypeName")), None)
            if other:
                raise GQLError(f"cannot change the type of artifact {name!r}", 409)
            n = self.number()
            art = {
                "n": n,
                "id": b64id("Artifact", n),
                "entity": e,
                "project": p,
                "collection": name,
                "type": i.get("artifactTypeName"),
                "state": "PENDING",
                "digest": i.get("digest"),
                "aliases": [],
                "pending": aliases,
                "metadata": i.get("metadata"),
                "version": -1,
                "description": i.get("description"),
                "historyStep": i.get("historyStep"),
                "tags": [t.get("tagName") for t in i.get("tags") or []],
                "ttl": i.get("ttlDurationSeconds"),
                "manifest": None,
                "files": {},
                "size": 0,
                "run": run and run["name"],
                "createdAt": now_iso(),
                "uploaded": 0,
                "deduped": 0,
            }
            self.state["artifacts"][art["id"]] = art
        if run and art["id"] not in run["logged"]:
            run["logged"].append(art["id"])
        if i.get("clientID"):
            self.state["client_ids"][i["clientID"]] = art["id"]
        if i.get("sequenceClientID"):
            self.state["client_ids"][i["sequenceClientID"]] = art["id"]
        return {"artifact": self.v_artifact(art)}

    def m_createArtifactFiles(self, i):
        nodes = []
        for spec in i.get("artifactFiles") or []:
            art = self.state["artifacts"][spec["artifactID"]]
            hexd = base64.b64decode(spec["md5"]).hex()
            have = (self.root / "blobs" / hexd).exists()
            art["deduped" if have else "uploaded"] += 1
            nodes.append(
                {
                    "storagePath": f"blobs/{hexd}",
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "uploadUrl": None if have else self.url("storage", "blob", hexd),
                    "artifact": {"id": art["id"]},
                    "name": spec["name"],
                    "displayName": spec["name"],
                }
            )
        return {"files": {"edges": [{"node": n} for n in nodes]}}

    def m_createArtifactManifest(self, i):
        art = self.state["artifacts"][i["artifactID"]]
        if not art["manifest"]:
            art["manifest"] = b64id("ArtifactManifest", art["n"])
        url = self.url("storage", "manifest", art["n"])
        return {
            "artifactManifest": {
                "id": art["manifest"],
                "file": {"id": art["manifest"], "uploadUrl": url, "uploadHeaders": [], "name": i.get("name")},
            }
        }

    m_updateArtifactManifest = None  # replaced below

    def m_commitArtifact(self, i):
        art = self.state["artifacts"][i["artifactID"]]
        f = self.root / "artifacts" / str(art["n"]) / "manifest.json"
        if not f.exists():
            raise GQLError("manifest was never uploaded", 400)
        art["files"], art["size"] = {}, 0
        for name, entry in json.loads(f.read_text()).get("contents", {}).items():
            if entry.get("ref"):
                continue
            hexd = base64.b64decode(entry["digest"]).hex()
            if not (self.root / "blobs" / hexd).exists():
                raise GQLError(f"file {name} was never uploaded", 400)
            art["files"][name] = {"md5": entry["digest"], "md5hex": hexd, "size": entry.get("size", 0)}
            art["size"] += entry.get("size", 0)
        versions = [
            a["version"]
            for a in self.state["artifacts"].values()
            if all(a[k] == art[k] for k in ("entity", "project", "collection"))
        ]
        art["version"], art["state"] = max(versions, default=-1) + 1, "COMMITTED"
        self.give_aliases(art, art.pop("pending", []) + ["latest"])
        return {"artifact": self.v_artifact(art)}

    def m_useArtifact(self, i):
        art = self.state["artifacts"].get(i.get("artifactID"))
        run = self.find_run(i.get("entityName"), i.get("projectName"), i.get("runName"))
        if art and run and art["id"] not in run["used"]:
            run["used"].append(art["id"])
        return {"artifact": self.v_artifact(art)}

    def m_updateArtifact(self, i):
        art = self.state["artifacts"][i["artifactID"]]
        for k in ("metadata", "description"):
            if i.get(k) is not None:
                art[k] = i[k]
        if i.get("ttlDurationSeconds") is not None:
            art["ttl"] = i["ttlDurationSeconds"]
        if i.get("aliases") is not None:
            want = [x["alias"] for x in i["aliases"] if not re.fullmatch(r"v\d+", x["alias"])]
            art["aliases"] = [x for x in art["aliases"] if x in want]
            self.give_aliases(art, want)
        return {"artifact": self.v_artifact(art)}

    def m_addAliases(self, i):
        self.give_aliases(self.state["artifacts"][i["artifactID"]], [x["alias"] for x in i["aliases"]])
        return {"success": True}

    def m_deleteAliases(self, i):
        art = self.state["artifacts"][i["artifactID"]]
        gone = {x["alias"] for x in i["aliases"]}
        art["aliases"] = [x for x in art["aliases"] if x not in gone]
        return {"success": True}

    def m_deleteArtifact(self, i):
        art = self.state["artifacts"][i["artifactID"]]
        if art["aliases"] and not i.get("deleteAliases"):
            raise GQLError("cannot delete an artifact that has aliases", 409)
        art["state"], art["aliases"] = "DELETED", []
        return {"artifact": self.v_artifact(art), "success": True}

    def m_updateModel(self, i):
        return {"model": self.v_project(self.project(i.get("entityName"), i.get("name")))}

    def m_upsertModel(self, i):
        p = self.project(i.get("entityName"), i.get("name"))
        return {"model": self.v_project(p), "project": self.v_project(p), "inserted": True}

    def graphql(self, body):
        """(status, response dict, operation name) for one GraphQL request."""
        query, variables = body.get("query") or "", body.get("variables") or {}
        op = body.get("operationName") or "?"
        try:
            operations, fragments = Parser(query).document()
            pick = [o for o in operations if o[1] == body.get("operationName")] or operations
            kind, name, defaults, selections = pick[0]
            op = name or op
            if op == "?" and selections:
                op = selections[0][1][1]
            values = {**defaults, **{k: v for k, v in variables.items()}}
            with self.lock:
                root = self.mutation_root() if kind == "mutation" else self.query_root()
                ex = Executor(fragments, values, self.unresolved(op))
                for _, what, _, _ in selections:  # an unknown root field is an error, as on a server
                    if isinstance(what, tuple) and what[1] not in root:
                        self.unresolved(op)(f".{what[1]}")
                        raise GQLError(f'Cannot query field "{what[1]}" on type "{kind.title()}".', 400)
                data = ex.run(root, selections)
                if kind == "mutation":
                    self.save()
            status, answer = 200, {"data": data}
        except GQLError as e:
            status, answer = e.status, {"errors": [{"message": str(e)}], "data": None}
        except (GQLSyntax, KeyError, TypeError, IndexError, ValueError, AttributeError) as e:
            import traceback

            status = 400
            answer = {"errors": [{"message": f"stub: {type(e).__name__}: {e}"}], "data": None}
            self.append("errors.jsonl", {"op": op, "trace": traceback.format_exc()})
        self.append(
            "graphql.jsonl", {"t": time.time(), "op": op, "variables": variables, "status": status, "response": answer}
        )
        return status, answer, op

    # -- file stream ---------------------------------------------------------------
    def file_stream(self, entity, project, name, body):
        with self.lock:
            run = self.find_run(entity, project, name)
            if run is None:
                return 404, {"error": "run not found"}
            d = self.run_dir(run)
            run["heartbeatAt"], run["missed"] = now_iso(), 0
            for fname, chunk in (body.get("files") or {}).items():
                content, offset = chunk.get("content") or [], chunk.get("offset") or 0
                if fname == _SUMMARY:
                    for line in content:
                        run["summary"] = json.loads(line)
                    continue
                target = d / {_HISTORY: "history.jsonl", _EVENTS: "events.jsonl"}.get(fname, fname)
                target.parent.mkdir(parents=True, exist_ok=True)
                lines = target.read_text().split("\n")[:-1] if target.exists() else []
                while len(lines) < offset:
                    lines.append("")
                clean = [c.rstrip("\n").replace("\n", " ") for c in content]
                if fname == _LOG:
                    clean = [c for c in clean]
                lines[offset : offset + len(clean)] = clean
                target.write_text("".join(x + "\n" for x in lines))
                run["lines"][fname] = len(lines)
                if fname == _EVENTS and clean:
                    run["system"] = {**run["system"], **json.loads(clean[-1])}
            if body.get("preempting"):
                run["preempting"] = True
            if body.get("complete"):
                code = body.get("exitcode")
                run["exitcode"] = code
                if run["preempting"] and code:
                    run["state"] = "preempted"
                elif code == 0:
                    run["state"] = "finished"
                else:
                    run["state"] = "failed"
            self.save()
            return 200, {"exitcode": None, "limits": {}, "stopped": bool(run["stopped"])}

    # -- faults -----------------------------------------------------------------------
    def add_fault(self, spec):
        spec = {"kind": "status", "status": 500, "match": ".", **spec}
        spec["until"] = time.time() + spec["seconds"] if spec.get("seconds") else None
        spec["left"] = spec.get("count")
        spec["hits"] = 0
        self.faults.append(spec)
        return spec

    def pick_fault(self, text):
        with self.lock:
            for f in self.faults:
                if f["until"] and time.time() > f["until"]:
                    continue
                if f["left"] is not None and f["left"] <= 0:
                    continue
                if re.search(f["match"], text):
                    if f["left"] is not None:
                        f["left"] -= 1
                    f["hits"] += 1
                    return f
        return None


def _wrap_update_manifest(self, i):
    aid = next(
        (a["id"] for a in self.state["artifacts"].values() if a["manifest"] == i.get("artifactManifestID")), None
    )
    return self.m_createArtifactManifest({**i, "artifactID": aid})


Backend.m_updateArtifactManifest = _wrap_update_manifest

# --------------------------------------------------------------------------
# HTTP.


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    backend: Backend
    server_version = "wandb-stub"

    def log_message(self, *args):
        pass

    def body(self):
        if (self.headers.get("Transfer-Encoding") or "").lower() == "chunked":
            out = b""
            while True:
                size = int(self.rfile.readline().split(b";")[0] or b"0", 16)
                out += self.rfile.read(size)
                self.rfile.readline()
                if size == 0:
                    break
            data = out
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        enc = (self.headers.get("Content-Encoding") or "").lower()
        if enc == "gzip":
            data = gzip.decompress(data)
        elif enc == "deflate":
            data = zlib.decompress(data)
        return data

    def reply(self, status, payload=b"", ctype="application/json", headers=()):
        if not isinstance(payload, bytes):
            payload = json.dumps(payload).encode()
        self.status = status
        self.send_response(status)
        self.send_header("Content-Type", ctype)
        self.send_header("Content-Length", str(len(payload)))
        for k, v in headers:
            self.send_header(k, v)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    def file(self, path):
        if not path.is_file():
            return self.reply(404, {"error": "no such file"})
        data, rng = path.read_bytes(), self.headers.get("Range")
        m = re.fullmatch(r"bytes=(\d+)-(\d*)", rng or "")
        if m:
            lo = int(m[1])
            hi = min(int(m[2]) if m[2] else len(data) - 1, len(data) - 1)
            return self.reply(
                206, data[lo : hi + 1], "application/octet-stream", [("Content-Range", f"bytes {lo}-{hi}/{len(data)}")]
            )
        self.reply(
            200,
            data,
            "application/octet-stream",
            [("ETag", '"' + hashlib.md5(data).hexdigest() + '"'), ("Accept-Ranges", "bytes")],
        )

    def handle_any(self):
        self.status, op, fault = None, None, None
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        try:
            data = self.body()
        except (OSError, ValueError):
            self.close_connection = True
            return
        try:
            body = None
            if path == "/graphql":
                body = json.loads(data or b"{}")
                m = re.search(r"\b(?:query|mutation)\s+(\w+)", body.get("query") or "")
                op = m[1] if m else body.get("operationName")
            fault = self.backend.pick_fault(f"{self.command} {path} {op or ''}")
            if fault:
                if fault["kind"] == "drop":
                    self.status, self.close_connection = 0, True
                    try:
                        self.connection.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        pass
                    return
                else:
                    return self.reply(
                        fault["status"], {"errors": [{"message": "injected fault"}], "error": "injected fault"}
                    )
            self.route(path, data, body)
        except BrokenPipeError:
            self.close_connection = True
        finally:
            self.backend.append(
                "requests.jsonl",
                {
                    "t": round(time.time(), 3),
                    "method": self.command,
                    "path": path,
                    "op": op,
                    "status": self.status,
                    "bytes": len(data),
                    "fault": fault and fault["kind"],
                },
            )

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = handle_any

    def route(self, path, data, body):
        b = self.backend
        if path == "/graphql":
            status, answer, _ = b.graphql(body)
            return self.reply(status, answer)
        m = re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", path)
        if m:
            return self.reply(*b.file_stream(*m.groups(), json.loads(data or b"{}")))
        m = re.fullmatch(r"/storage/blob/([0-9a-f]+)", path)
        if m or (m := re.fullmatch(r"/artifactsV2/.*/([0-9a-f]{32})(?:/.*)?", path)):
            f = b.root / "blobs" / m[1]
            if self.command in ("PUT", "POST"):
                got = hashlib.md5(data).hexdigest()
                if got != m[1]:
                    return self.reply(400, {"error": "md5 differs"})
                f.parent.mkdir(exist_ok=True)
                f.write_bytes(data)
                return self.reply(200, b"", headers=[("ETag", f'"{got}"')])
            return self.file(f)
        m = re.fullmatch(r"/storage/manifest/(\d+)", path)
        if m:
            f = b.root / "artifacts" / m[1] / "manifest.json"
            if self.command in ("PUT", "POST"):
                f.parent.mkdir(parents=True, exist_ok=True)
                f.write_bytes(data)
                return self.reply(200)
            return self.file(f)
        m = re.fullmatch(r"/storage/run/([^/]+)/([^/]+)/([^/]+)/(.+)", path) or re.fullmatch(
            r"/files/([^/]+)/([^/]+)/([^/]+)/(.+)", path
        )
        if m:
            run = b.find_run(*m.groups()[:3])
            if run is None:
                return self.reply(404, {"error": "no such run"})
            base = (b.run_dir(run) / "files").resolve()
            f = (base / m[4]).resolve()
            if base not in f.parents:
                return self.reply(400, {"error": "bad path"})
            if self.command in ("PUT", "POST"):
                f.parent.mkdir(parents=True, exist_ok=True)
                f.write_bytes(data)
                with b.lock:
                    run["files"][m[4]] = {
                        "size": len(data),
                        "t": now_iso(),
                        "md5": base64.b64encode(hashlib.md5(data).digest()).decode(),
                    }
                    if m[4] == _SUMMARY:
                        run["summary"] = json.loads(data or b"{}")
                    b.save()
                return self.reply(200)
            return self.file(f)
        if path in ("/", "/healthz", "/ready"):
            return self.reply(200, {"ok": True})
        self.reply(404, {"error": f"stub has no {path}"})


class _Server(ThreadingHTTPServer):
    daemon_threads, allow_reuse_address, request_queue_size = True, True, 64

    def handle_error(self, request, client_address):
        pass


class StubServer:
    """The stub as a context manager in a thread of this process."""

    def __init__(self, root, port=0, entity="stub", seed=0):
        self.backend = Backend(root, entity, seed)
        handler = type("BoundHandler", (Handler,), {"backend": self.backend})
        self.httpd = _Server(("127.0.0.1", port), handler)
        self.port = self.httpd.server_address[1]
        self.url = self.backend.base_url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.httpd.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.httpd.shutdown()
        self.httpd.server_close()

    def env(self, home=None):
        """Environment for child processes; `home` isolates caches and settings."""
        home = str(home or self.backend.root / "home")
        os.makedirs(home, exist_ok=True)
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": "0" * 40,
            "WANDB_MODE": "online",
            "WANDB_ENTITY": self.backend.entity,
            "WANDB_SILENT": "true",
            "WANDB_CONSOLE": "wrap",
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_CONFIG_DIR": home,
            "WANDB_CACHE_DIR": home + "/cache",
            "WANDB_DATA_DIR": home + "/data",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    @property
    def state(self):
        return self.backend.state

    def run(self, path):
        return self.backend.state["runs"][path]

    def history(self, path, events=False):
        r = self.run(path)
        return [json.loads(x) for x in self.backend.read_lines(r, _EVENTS if events else _HISTORY)]

    def fault(self, **spec):
        return self.backend.add_fault(spec)

    def lift_faults(self):
        done, self.backend.faults = self.backend.faults, []
        return done
