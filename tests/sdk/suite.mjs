// The counterpart of suite.py: tests are functions, and each reports one line of JSON to the runner.

import assert from 'node:assert/strict';

export const BALANCER_URL = process.env.BALANCER_URL;
export const KEY = process.env.CLIENT_KEY;
export const CLIENT = process.env.CLIENT_NAME;
export const LIMITED_KEY = process.env.LIMITED_KEY;
export const COLLEAGUE_KEY = process.env.COLLEAGUE_KEY;

export const FAILING_MOODS = process.env.FAILING.split(',');

const tests = [];
let expected = [];
let expectedTurns = {};

/** Registers a function as a test. */
export const test = (name, run) => tests.push({ name, run });

/** Expects one record with these fields, see record.py. */
export const expect = (fields) => expected.push({ client: CLIENT, ...fields });

/** Expects so many requests of each kind, see affinity_check.py; adds to what was expected before. */
export function expectTurns(counts) {
  for (const [kind, count] of Object.entries(counts)) expectedTurns[kind] = (expectedTurns[kind] ?? 0) + count;
}

export const contains = (text) => ({ contains: text });
export const atLeast = (number) => ({ at_least: number });

/** The deployment of this suite with that mood. */
export const ownDeployment = (mood) => `${mood}-${CLIENT}`;

/** Makes a call, which must fail with an error of this type, and returns the error. */
export async function raises(errorType, call) {
  try {
    await call();
  } catch (error) {
    assert.ok(error instanceof errorType, `${error?.constructor?.name} in place of ${errorType.name}: ${error}`);
    return error;
  }
  assert.fail(`no ${errorType.name} was thrown`);
}

export async function runTests() {
  for (const { name, run } of tests) {
    expected = [];
    expectedTurns = {};
    let error = null;
    const start = Date.now();
    try {
      await run();
    } catch (problem) {
      error = String(problem?.stack ?? problem);
    }
    // Record times are truncated to milliseconds, so a request of the last one still belongs to this test.
    const end = Date.now() + 1;
    const line = { test: name, start: start / 1000, end: end / 1000, error, records: expected, turns: expectedTurns };
    process.stdout.write(`${JSON.stringify(line)}\n`);
    // The next test must start in a later millisecond.
    while (Date.now() <= end) await new Promise((resume) => setTimeout(resume, 1));
  }
}
