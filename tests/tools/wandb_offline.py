"""Read what an offline W&B run recorded: protobuf records in LevelDB log framing."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from waiting import wait_for

BLOCK, FILE_HEADER, RECORD_HEADER = 32768, 7, struct.Struct("<IHB")
FULL, LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """Protobuf records of one run-ID.wandb; a torn tail is ignored."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts = path.read_bytes(), FILE_HEADER, []
    assert data[:4] == b":W&B"
    while position + RECORD_HEADER.size <= len(data):
        if BLOCK - position % BLOCK < RECORD_HEADER.size:  # the rest of a block is padding
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = RECORD_HEADER.unpack_from(data, position)
        position += RECORD_HEADER.size
        if length == 0 and kind == 0:
            return
        parts.append(data[position : position + length])
        position += length
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def read_run(folder: Path) -> dict[str, Any]:
    """history rows, configuration, summary, artifacts and job type of the one offline run below `folder`.

    The client's service may still write the end of the record when the run has finished, so that is waited for.
    """
    [path] = folder.glob("offline-run-*/run-*.wandb")
    wait_for(lambda: any(one.WhichOneof("record_type") == "exit" for one in records(path)), f"the end of {path}")
    run: dict[str, Any] = {
        "history": [],
        "config": {},
        "summary": {},
        "artifacts": [],
        "axes": {},
        "exit_code": None,
    }
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.update(
                id=record.run.run_id,
                name=record.run.display_name,
                job_type=record.run.job_type,
                group=record.run.run_group,
                project=record.run.project,
                tags=list(record.run.tags),
            )
            run["config"].update({item.key: json.loads(item.value_json) for item in record.run.config.update})
        elif kind == "config":
            run["config"].update(
                {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.config.update}
            )
        elif kind == "history":
            run["history"].append(
                {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            )
        elif kind == "summary":
            run["summary"].update(
                {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.summary.update}
            )
        elif kind == "metric":
            run["axes"][record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "artifact":
            run["artifacts"].append(
                {
                    "name": record.artifact.name,
                    "type": record.artifact.type,
                    "aliases": list(record.artifact.aliases),
                    "files": sorted(entry.path for entry in record.artifact.manifest.contents),
                    "paths": sorted(entry.local_path for entry in record.artifact.manifest.contents),
                }
            )
        elif kind == "exit":
            run["exit_code"] = record.exit.exit_code
    return run
