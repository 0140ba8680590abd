// What suite.py is to the Python suites: tests are functions, and each reports one line of JSON.

import assert from 'node:assert/strict';

export const URL_ = process.env.BALANCER_URL;
export const KEY = process.env.CLIENT_KEY;
export const CLIENT = process.env.CLIENT_NAME;
export const LIMITED_KEY = process.env.LIMITED_KEY;
export const COLLEAGUE_KEY = process.env.COLLEAGUE_KEY;

export const FAILING = process.env.FAILING.split(',');

const tests = [];
let expected = [];

/** Registers a function as a test. */
export const test = (name, run) => tests.push({ name, run });

/** One line of the record, see record.py. */
export const expect = (fields) => expected.push({ client: CLIENT, ...fields });

export const contains = (text) => ({ contains: text });
export const least = (number) => ({ least: number });

/** This suite's deployment in that mood. */
export const mine = (mood) => `${mood}-${CLIENT}`;

/** The error of that kind in which a call must end. */
export async function raises(kind, call) {
  try {
    await call();
  } catch (error) {
    assert.ok(error instanceof kind, `${error?.constructor?.name} in place of ${kind.name}: ${error}`);
    return error;
  }
  assert.fail(`no ${kind.name} was thrown`);
}

export async function run() {
  for (const { name, run } of tests) {
    expected = [];
    let error = null;
    const begun = Date.now();
    try {
      await run();
    } catch (problem) {
      error = String(problem?.stack ?? problem);
    }
    // Milliseconds are cut off: what arrived in the last one still belongs to this test.
    const ended = Date.now() + 1;
    const line = { test: name, begun: begun / 1000, ended: ended / 1000, error, records: expected };
    process.stdout.write(`${JSON.stringify(line)}\n`);
    // The next test begins in another millisecond.
    while (Date.now() <= ended) await new Promise((resume) => setTimeout(resume, 1));
  }
}
