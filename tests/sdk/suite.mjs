// What suite.py is to the Python suites: tests are functions, and each reports one line of JSON.

import assert from 'node:assert/strict';

export const BALANCER_URL = process.env.BALANCER_URL;
export const KEY = process.env.CLIENT_KEY;
export const CLIENT = process.env.CLIENT_NAME;
export const LIMITED_KEY = process.env.LIMITED_KEY;
export const COLLEAGUE_KEY = process.env.COLLEAGUE_KEY;

export const FAILING_MOODS = process.env.FAILING.split(',');

const tests = [];
let expected = [];

/** Registers a function as a test. */
export const test = (name, run) => tests.push({ name, run });

/** One line of the record, see record.py. */
export const expect = (fields) => expected.push({ client: CLIENT, ...fields });

export const contains = (text) => ({ contains: text });
export const atLeast = (number) => ({ at_least: number });

/** This suite's deployment in that mood. */
export const ownDeployment = (mood) => `${mood}-${CLIENT}`;

/** The error of that kind in which a call must end. */
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
    let error = null;
    const start = Date.now();
    try {
      await run();
    } catch (problem) {
      error = String(problem?.stack ?? problem);
    }
    // Milliseconds are cut off: what arrived in the last one still belongs to this test.
    const end = Date.now() + 1;
    const line = { test: name, start: start / 1000, end: end / 1000, error, records: expected };
    process.stdout.write(`${JSON.stringify(line)}\n`);
    // The next test begins in another millisecond.
    while (Date.now() <= end) await new Promise((resume) => setTimeout(resume, 1));
  }
}
