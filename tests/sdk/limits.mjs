// The Node SDK with clients that have limits: what it repeats, how long it waits, and what it throws.

import assert from 'node:assert/strict';
import OpenAI, { RateLimitError } from 'openai';

import { BALANCER_URL, expect, raises, runTests, test } from './suite.mjs';

const KEYS = JSON.parse(process.env.LIMIT_KEYS);
const SLOW = { 'x-simulate': 'slow_first_byte: 400ms' };
// Timers may fire a little early.
const TOLERANCE_MS = 10;
const REFUSED = { status: 429, outcome: 'refused', statuses: [] };
// Azure tells counters of this deployment.
const COUNTED_DEPLOYMENT = 'limited';
const ANSWER = 'You said: Hello - and this is a simulated answer to it.';

/** A client with a limit, and what its SDK has sent: of each request its times, its status and the hint when to repeat it. */
class Caller {
  sent = [];

  constructor(limit, options = {}) {
    this.name = `${limit}-node`;
    const fetchAndNote = async (url, init) => {
      const request = { at: performance.now() };
      this.sent.push(request);
      const response = await fetch(url, init);
      const hint = Number(response.headers.get('retry-after-ms'));
      Object.assign(request, { status: response.status, answered: performance.now(), hint });
      return response;
    };
    const own = { baseURL: `${BALANCER_URL}/openai/v1/`, apiKey: KEYS[this.name], fetch: fetchAndNote };
    this.client = new OpenAI({ ...own, maxRetries: 0, ...options });
  }

  get statuses() {
    return this.sent.map((request) => request.status);
  }

  call(fields = {}, options = {}) {
    return this.client.chat.completions.create({ model: 'gpt-4o', messages: [{ role: 'user', content: 'Hello' }], ...fields }, options);
  }

  /** A chat that is answered: the headers of the answer. */
  async chat(fields, options) {
    const { data, response } = await this.call(fields, options).withResponse();
    assert.equal(data.choices[0].message.content, ANSWER);
    return response.headers;
  }

  /** The error of a chat that is refused. */
  async refused(fields) {
    const error = await raises(RateLimitError, () => this.call(fields));
    assert.equal(error.status, 429);
    assert.ok(error.requestID);
    return error;
  }

  expect(fields) {
    expect({ client: this.name, ...fields });
  }
}

test('three calls at once where one may be in flight', async () => {
  const callers = Array.from({ length: 3 }, () => new Caller('in-flight', { maxRetries: 20 }));
  await Promise.all(callers.map((caller) => caller.chat({}, { headers: SLOW })));
  for (const caller of callers) {
    for (const [number, repeated] of caller.sent.slice(1).entries()) {
      const refused = caller.sent[number];
      const waited = repeated.at - refused.answered;
      assert.ok(refused.status === 429 && refused.hint >= 100 && waited > refused.hint - TOLERANCE_MS, JSON.stringify(caller.sent));
      caller.expect({ ...REFUSED, limited_by: 'in_flight', refusal: 'rate_limit_exceeded' });
    }
    caller.expect({ status: 200, limited_by: null });
  }
  const count = callers.reduce((sum, caller) => sum + caller.sent.length, 0);
  assert.ok(count >= 5, 'two of them were not refused at first');
});

test('a rate of requests', async () => {
  const caller = new Caller('requests');
  for (const remaining of [1, 0]) {
    checkCounters(await caller.chat({ model: COUNTED_DEPLOYMENT }), remaining);
    caller.expect({ status: 200, limited_by: null });
  }
  const error = await caller.refused();
  assert.deepEqual(caller.statuses, [200, 200, 429]);
  assert.deepEqual([error.code, error.type], ['rate_limit_exceeded', 'rate_limit_error']);
  assert.ok(error.message.includes('requests_per_minute') && error.message.includes(caller.name), error.message);
  const [millis, seconds] = ['retry-after-ms', 'retry-after'].map((name) => Number(error.headers.get(name)));
  assert.ok(millis >= 50_000 && millis <= 61_000 && seconds === Math.ceil(millis / 1000), `${millis} ms, ${seconds} s`);
  assert.equal(error.headers.get('x-should-retry'), null);
  checkCounters(error.headers, 0);
  caller.expect({ ...REFUSED, limited_by: 'requests_per_minute', refusal: 'rate_limit_exceeded' });
  // Other clients get the counters of Azure.
  const unlimited = new Caller('unlimited');
  const headers = await unlimited.chat({ model: COUNTED_DEPLOYMENT });
  assert.ok(Number(headers.get('x-ratelimit-limit-requests')) > 2 && headers.has('x-ratelimit-remaining-tokens'));
  unlimited.expect({ status: 200, limited_by: null });
});

/** The counters are of the client's own limit, which has no tokens. */
function checkCounters(headers, remaining) {
  const prefix = 'x-ratelimit-';
  const entries = [...headers].filter(([name]) => name.startsWith(prefix));
  const counters = Object.fromEntries(entries.map(([name, value]) => [name.slice(prefix.length), Number(value)]));
  const { 'reset-requests': reset, ...others } = counters;
  assert.ok(reset >= 50 && reset <= 61, `${reset} s`);
  assert.deepEqual(others, { 'limit-requests': 2, 'remaining-requests': remaining });
}

test('a budget that is used up', async () => {
  const caller = new Caller('budget', { maxRetries: 5 });
  await caller.chat({ max_tokens: 50 });
  caller.expect({ status: 200, limited_by: null });
  // Within the budget by itself, but not after the first.
  const error = await caller.refused({ max_tokens: 75 });
  assert.deepEqual(caller.statuses, [200, 429]);
  assert.equal(error.code, 'insufficient_quota');
  assert.ok(error.message.includes('tokens_per_day'), error.message);
  const seconds = Number(error.headers.get('retry-after'));
  assert.ok(seconds >= 1 && seconds <= 86_401, `${seconds} s`);
  assert.equal(error.headers.get('x-should-retry'), 'false');
  caller.expect({ ...REFUSED, limited_by: 'tokens_per_day', refusal: 'insufficient_quota' });
});

test('a request that alone is more than a limit', async () => {
  const caller = new Caller('tokens', { maxRetries: 5 });
  const error = await caller.refused({ max_tokens: 5000 });
  assert.deepEqual(caller.statuses, [429]);
  assert.equal(error.code, 'rate_limit_exceeded');
  const needed = Number(error.message.match(/about (\d+) tokens/)[1]);
  assert.ok(needed > 5000 && needed < 5100 && error.message.includes('1000 tokens in 60 seconds'), error.message);
  assert.deepEqual([error.headers.get('x-should-retry'), error.headers.get('retry-after')], ['false', null]);
  caller.expect({ ...REFUSED, limited_by: 'tokens_per_minute', refusal: 'rate_limit_exceeded' });
  await caller.chat({ max_tokens: 100 });
  caller.expect({ status: 200, limited_by: null });
});

test('the class of a request', async () => {
  const headers = { 'x-aoai-lb-class': 'batch' };
  const caller = new Caller('unlimited');
  await caller.chat();
  caller.expect({ status: 200, class: 'interactive' });
  await caller.chat({}, { headers });
  await new Caller('unlimited', { defaultHeaders: headers }).chat();
  for (let number = 0; number < 2; number++) caller.expect({ status: 200, class: 'batch' });
});

await runTests();
