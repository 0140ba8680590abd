// The Node SDK over WebSockets: the realtime API, and responses over a WebSocket.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import OpenAI, { AzureOpenAI } from 'openai';
import { OpenAIRealtimeWS } from 'openai/realtime/ws';
import { ResponsesWS } from 'openai/resources/responses/ws';

import { BALANCER_URL, KEY, LIMITED_KEY, contains, expect, runTests, test } from './suite.mjs';

// The class for realtime knows only `wss`.
const TLS_URL = process.env.TLS_URL;
const OPTIONS = { options: { ca: readFileSync(process.env.EDGE_CA) } };
const NOT_NULL = { not_null: true };

const v1Client = (apiKey = KEY, url = BALANCER_URL) => new OpenAI({ baseURL: `${url}/openai/v1/`, apiKey, maxRetries: 0 });
const openRealtime = (apiKey) => new OpenAIRealtimeWS({ model: 'gpt-realtime', ...OPTIONS }, v1Client(apiKey, TLS_URL));
const answerTo = (text) => `You said: ${text} - and this is a simulated answer to it.`;

const expectTurn = (fields) => expect({ method: 'WEBSOCKET', socket_id: NOT_NULL, api: 'v1', status: 200, outcome: 'answered', ...fields });
const expectSocket = (fields) => expect({ method: 'GET', socket_id: null, total_tokens: null, status: 101, outcome: 'answered', ...fields });
const tokensOf = (usage) => ({ input_tokens: usage.input_tokens, output_tokens: usage.output_tokens, total_tokens: usage.total_tokens });

/** The text and the last event of a turn; `last` are the types of event that end one. */
function readTurn(socket, last, send) {
  return new Promise((resolve, reject) => {
    let text = '';
    const onEvent = (event) => {
      if (event.type.endsWith('text.delta')) text += event.delta;
      if (!last.includes(event.type)) return;
      socket.off('event', onEvent);
      resolve({ text, event });
    };
    socket.on('event', onEvent);
    socket.on('error', (error) => error.error?.type !== 'error' && reject(error));
    send();
  });
}

const ask = (socket, model, input, options = {}) =>
  readTurn(socket, ['response.completed', 'error'], () => socket.send({ type: 'response.create', model, input, ...options }));

const closed = (socket, underlying) => {
  const ended = new Promise((resolve) => underlying.once('close', resolve));
  socket.close();
  return ended;
};

test('responses over a WebSocket', async () => {
  const socket = new ResponsesWS(v1Client());
  const options = {};
  for (const [number, model] of ['gpt-4o-mini', 'gpt-4o-mini', 'gpt-4o'].entries()) {
    const { text, event } = await ask(socket, model, `Turn ${number}`, number === 1 ? options : {});
    assert.equal(event.type, 'response.completed');
    assert.ok(text.startsWith(`You said: Turn ${number}`) || text.includes('you began with: Turn 0'), text);
    options.previous_response_id = event.response.id;
    expectTurn({ operation: 'responses', deployment: model, completion: contains(text), ...tokensOf(event.response.usage) });
  }
  const start = Date.now();
  await closed(socket, socket.socket.platformSocket);
  assert.ok(Date.now() - start < 1000, `the close took ${Date.now() - start} ms`);
  expectSocket({ operation: 'responses' });
});

test('an error of a turn leaves a WebSocket open', async () => {
  const socket = new ResponsesWS(v1Client(LIMITED_KEY));
  const { event } = await ask(socket, 'gpt-4o', 'Not allowed');
  assert.equal(event.status, 403);
  assert.equal(event.error.code, 'deployment_not_allowed');
  expectTurn({ client: 'limited', operation: 'responses', status: 403, outcome: 'refused', refusal: 'deployment_not_allowed' });
  const { text } = await ask(socket, 'gpt-4o-mini', 'Allowed');
  assert.equal(text, answerTo('Allowed'));
  expectTurn({ client: 'limited', operation: 'responses', deployment: 'gpt-4o-mini' });
  await closed(socket, socket.socket.platformSocket);
  expectSocket({ client: 'limited', operation: 'responses' });
});

test('realtime', async () => {
  const azureOptions = { endpoint: TLS_URL, apiKey: KEY, apiVersion: '2025-04-01-preview', deployment: 'gpt-realtime' };
  const sockets = { classic: () => OpenAIRealtimeWS.azure(new AzureOpenAI(azureOptions), OPTIONS), v1: () => openRealtime() };
  for (const [api, open] of Object.entries(sockets)) {
    const socket = await open();
    await readTurn(socket, ['session.created'], () => {});
    const item = { type: 'message', role: 'user', content: [{ type: 'input_text', text: 'Speak' }] };
    const { text, event } = await readTurn(socket, ['response.done'], () => {
      socket.send({ type: 'conversation.item.create', item });
      socket.send({ type: 'response.create' });
    });
    assert.equal(text, answerTo('Speak'));
    expectTurn({ operation: 'realtime', api, deployment: 'gpt-realtime', ...tokensOf(event.response.usage) });
    await closed(socket, socket.socket);
    expectSocket({ operation: 'realtime', api, backend: 'westus' });
  }
});

test('a WebSocket with a wrong key', async () => {
  const sockets = { responses: new ResponsesWS(v1Client('wrong')), realtime: openRealtime('wrong') };
  // Both are listened to at once: either may fail first.
  const failures = Object.entries(sockets).map(async ([operation, socket]) => [
    operation,
    await new Promise((resolve) => socket.on('error', resolve)),
  ]);
  for (const [operation, error] of await Promise.all(failures)) {
    assert.ok(error.message.includes('401'), error.message);
    expect({ client: null, method: 'GET', operation, status: 401, outcome: 'refused', refusal: 'invalid_api_key' });
  }
});

await runTests();
