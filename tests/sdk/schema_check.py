"""Checks files against the JSON schema of the configuration, as an editor does.

    python3 tests/sdk/schema_check.py conf/aoai-lb.schema.json conf/*.yaml

Runs in an environment with requirements-schema.txt. Prints what is wrong with each file; exit code 1 if anything is.
"""

import json
import sys

import jsonschema
import yaml

# What a file may not have, and where an editor should mark it.
WRONG = [
    ("retry: { attemps: 3 }", "retry"),
    ("retry: { attempts: 101 }", "retry.attempts"),
    ("timeouts: { connect: 5 }", "timeouts.connect"),
    ("timeouts: { connect: 5x }", "timeouts.connect"),
    ("retry: { hold: { size: 1.5MiB } }", "retry.hold.size"),
    ("backends: [ { name: a, http2: perhaps } ]", "backends.0.http2"),
    ("balance: randomly", "balance"),
    ("queue: { body_memory: 5 s m }", "queue.body_memory"),
    ("clients: { name: a }", "clients"),
]
RIGHT = [
    "timeouts: { connect: '${CONNECT:-5s}', idle: 1m 30s }",
    "retry: { attempts: '${ATTEMPTS}', budget: 20%, hold: { time: 500ms, size: 1536KiB } }",
    "listeners: [ { address: 127.0.0.1:1, tls: { minimum_version: 1.2 } } ]",
    "clients: open",
    "backends: [ { name: 7, deployments: { a: b, '*': '*' } } ]",
]


class Loader(yaml.SafeLoader):
    """Reads a date as text, as YAML 1.2 does."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def main():
    schema_file, *files = sys.argv[1:]
    with open(schema_file) as file:
        schema = json.load(file)
    jsonschema.Draft7Validator.check_schema(schema)
    validator = jsonschema.Draft7Validator(schema)
    failed = False

    def problems_of(text):
        return sorted(".".join(map(str, error.absolute_path)) for error in validator.iter_errors(yaml.load(text, Loader)))

    for name in files:
        with open(name) as file:
            problems = list(validator.iter_errors(yaml.load(file, Loader)))
        for problem in problems:
            print(f"{name}: {'.'.join(map(str, problem.absolute_path))}: {problem.message}")
        failed = failed or bool(problems)
    for text, place in WRONG:
        if place not in problems_of(text):
            print(f"{text}: expected a problem at {place}, found {problems_of(text)}")
            failed = True
    for text in RIGHT:
        if problems_of(text):
            print(f"{text}: {problems_of(text)}")
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
