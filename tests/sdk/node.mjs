// The Node SDK: AzureOpenAI and OpenAI, with the calls of an application.

import assert from 'node:assert/strict';
import OpenAI, { AzureOpenAI, toFile } from 'openai';

import { COLLEAGUE_KEY, FAILING_MOODS, KEY, LIMITED_KEY, BALANCER_URL, contains, expect, atLeast, ownDeployment, raises, runTests, test } from './suite.mjs';

const VERSION = '2025-04-01-preview';
const AUDIO = Buffer.alloc(300_000, 'sound');

const azureClient = (options = {}) =>
  new AzureOpenAI({ endpoint: `${BALANCER_URL}/`, apiKey: KEY, apiVersion: VERSION, maxRetries: 0, ...options });
const v1Client = (options = {}) => new OpenAI({ baseURL: `${BALANCER_URL}/openai/v1/`, apiKey: KEY, maxRetries: 0, ...options });

// As it is configured for OpenAI itself, with another host.
const openaiClient = (options = {}) => v1Client({ baseURL: `${BALANCER_URL}/v1`, ...options });

const FLAVOURS = { azure: ['classic', azureClient], v1: ['v1', v1Client], 'base URL of OpenAI': ['v1', openaiClient] };

/** Registers a test once per flavour of the client. */
const forEachFlavour = (name, run) => {
  for (const [flavour, [api, makeClient]] of Object.entries(FLAVOURS)) {
    test(`${name}, ${flavour}`, () => run(makeClient(), api, makeClient));
  }
};

const userMessage = (text) => [{ role: 'user', content: text }];
const answerTo = (text) => `You said: ${text} - and this is a simulated answer to it.`;

async function collectItems(stream) {
  const all = [];
  for await (const item of stream) all.push(item);
  return all;
}

forEachFlavour('chat', async (client, api) => {
  const call = client.chat.completions.create({ model: 'gpt-4o', messages: userMessage('Hello there') });
  const { data, response } = await call.withResponse();
  assert.equal(data.choices[0].message.content, answerTo('Hello there'));
  assert.ok(data._request_id);
  expect({
    request_id: response.headers.get('x-aoai-lb-request-id'),
    operation: 'chat',
    api,
    deployment: 'gpt-4o',
    stream: false,
    status: 200,
    outcome: 'answered',
    backend: response.headers.get('x-aoai-lb-backend'),
    input_tokens: data.usage.prompt_tokens,
    output_tokens: data.usage.completion_tokens,
    total_tokens: data.usage.total_tokens,
    usage_source: 'reported',
    finish_reason: 'stop',
    prompt: contains('Hello there'),
    completion: answerTo('Hello there'),
  });
});

forEachFlavour('stream, with and without usage', async (client, api) => {
  const text = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join('');
  const messages = userMessage('Stream it');
  let chunks = await collectItems(await client.chat.completions.create({ model: 'gpt-4o', messages, stream: true }));
  assert.equal(text(chunks), answerTo('Stream it'));
  // The balancer requests usage, which the client must not see.
  assert.ok(!chunks.some((chunk) => chunk.usage), 'expected no usage that the client did not request');
  assert.ok(chunks.at(-1).choices.length, 'expected no chunk without choices at the end');
  const line = { operation: 'chat', api, stream: true, completion: answerTo('Stream it'), usage_source: 'reported' };
  expect({ ...line, input_tokens: atLeast(1), output_tokens: atLeast(1), total_tokens: atLeast(2) });

  const stream_options = { include_usage: true };
  const asked = { model: 'gpt-4o', messages, stream: true, stream_options };
  chunks = await collectItems(await client.chat.completions.create(asked));
  assert.equal(text(chunks), answerTo('Stream it'));
  assert.ok(chunks.at(-1).usage.total_tokens > 0);
  expect({ ...line, total_tokens: chunks.at(-1).usage.total_tokens });
});

forEachFlavour('tools', async (client) => {
  const tools = [{ type: 'function', function: { name: 'weather', parameters: { type: 'object', properties: {} } } }];
  const answer = await client.chat.completions.create({ model: 'gpt-4o-mini', messages: userMessage('Use the tool'), tools });
  assert.equal(answer.choices[0].message.tool_calls[0].function.name, 'weather');
  expect({ operation: 'chat', finish_reason: 'tool_calls', completion: contains('weather') });
});

forEachFlavour('embeddings', async (client, api) => {
  const model = 'text-embedding-3-small';
  // Without encoding_format the SDK requests base64 and decodes it.
  const packed = await client.embeddings.create({ model, input: 'a text' });
  const plain = await client.embeddings.create({ model, input: 'a text', encoding_format: 'float' });
  const [one, other] = [packed.data[0].embedding, plain.data[0].embedding];
  assert.equal(one.length, 1536);
  assert.ok(one.every((number, index) => Math.abs(number - other[index]) < 1e-6));
  for (const answer of [packed, plain]) {
    expect({ operation: 'embeddings', api, input_tokens: answer.usage.prompt_tokens, prompt: contains('a text') });
  }
});

forEachFlavour('responses', async (client, api) => {
  const answer = await client.responses.create({ model: 'gpt-4o-mini', input: 'Respond' });
  assert.equal(answer.output_text, answerTo('Respond'));
  expect({ operation: 'responses', api, deployment: 'gpt-4o-mini', output_tokens: answer.usage.output_tokens });
  assert.equal((await client.responses.retrieve(answer.id)).id, answer.id);
  expect({ operation: 'responses', method: 'GET', status: 200 });
  const events = await collectItems(await client.responses.create({ model: 'gpt-4o-mini', input: 'Go on', stream: true }));
  assert.equal(events.at(-1).type, 'response.completed');
  expect({ operation: 'responses', stream: true, completion: answerTo('Go on'), output_tokens: atLeast(1) });
  await client.responses.delete(answer.id);
  expect({ operation: 'responses', method: 'DELETE', status: 200 });
});

forEachFlavour('audio upload', async (client, api) => {
  // `dictation` is `whisper` on its resource: the path is rewritten in the classic API, the form in v1.
  const file = await toFile(AUDIO, 'speech.wav', { type: 'audio/wav' });
  const answer = await client.audio.transcriptions.create({ model: 'dictation', file });
  assert.ok(answer.text.includes(`speech.wav, ${AUDIO.length} bytes`), answer.text);
  const line = { operation: 'audio', api, deployment: 'dictation', upstream_deployment: 'whisper' };
  expect({ ...line, completion: answer.text });
});

forEachFlavour('speech', async (client) => {
  const answer = await client.audio.speech.create({ model: 'tts', voice: 'alloy', input: 'Say this aloud' });
  assert.ok((await answer.arrayBuffer()).byteLength >= 4096);
  expect({ operation: 'audio', status: 200, response_bytes: atLeast(4096) });
});

forEachFlavour('images', async (client) => {
  const answer = await client.images.generate({ model: 'gpt-image-1', prompt: 'A lighthouse' });
  assert.ok(answer.data[0].b64_json);
  const output_tokens = answer.usage.output_tokens;
  expect({ operation: 'images', status: 200, output_tokens, prompt: contains('lighthouse') });
});

forEachFlavour('files', async (client, api) => {
  const file = await toFile(Buffer.from('{"custom_id":"1"}\n'), 'lines.jsonl');
  const made = await client.files.create({ file, purpose: 'batch' });
  expect({ operation: 'files', method: 'POST', api, status: 201, backend: 'westus' });
  const ids = (await collectItems(client.files.list())).map((listed) => listed.id);
  assert.ok(ids.includes(made.id));
  expect({ operation: 'files', method: 'GET', status: 200 });
  assert.equal((await client.files.retrieve(made.id)).filename, 'lines.jsonl');
  expect({ operation: 'files', method: 'GET', status: 200 });
  assert.equal(await (await client.files.content(made.id)).text(), '{"custom_id":"1"}\n');
  expect({ operation: 'files', method: 'GET', status: 200, path: contains('/content') });
  assert.ok((await client.files.delete(made.id)).deleted);
  expect({ operation: 'files', method: 'DELETE', status: 200 });
  await raises(OpenAI.NotFoundError, () => client.files.retrieve(made.id));
  expect({ operation: 'files', method: 'GET', status: 404 });
});

forEachFlavour('models', async (client, api) => {
  const models = await collectItems(client.models.list());
  assert.ok(models.some((model) => model.id.startsWith('gpt-4o')));
  // Of the classic API those of the resource that such calls go to.
  expect({ operation: 'models', method: 'GET', status: 200, backend: api === 'classic' ? 'westus' : null });
  if (api === 'classic') return;
  assert.ok(models.some((model) => model.id === 'dictation'));
  assert.deepEqual(await client.models.retrieve('GPT-4o'), { id: 'gpt-4o', object: 'model', created: 0, owned_by: 'aoai-lb' });
  expect({ operation: 'models', path: '/openai/v1/models/GPT-4o', status: 200, backend: null, outcome: 'answered' });
});

test('models of a client with a list, v1', async () => {
  const client = openaiClient({ apiKey: LIMITED_KEY });
  assert.deepEqual((await collectItems(client.models.list())).map((model) => model.id), ['gpt-4o-mini']);
  expect({ client: 'limited', operation: 'models', status: 200 });
  const error = await raises(OpenAI.NotFoundError, () => client.models.retrieve('gpt-4o'));
  check(error, 404, 'DeploymentNotFound', { client: 'limited', refusal: 'DeploymentNotFound' });
});

test('one backend throttled', async () => {
  const call = azureClient().chat.completions.create({ model: ownDeployment('failover-chat'), messages: userMessage('Anyone') });
  const { response } = await call.withResponse();
  assert.equal(response.headers.get('x-aoai-lb-attempts'), '2');
  expect({ statuses: [429, 200], backends: ['troubled', 'westus'] });
  const file = await toFile(AUDIO, 'speech.wav');
  const answer = await v1Client().audio.transcriptions.create({ model: ownDeployment('failover-dictation'), file });
  assert.ok(answer.text.includes(`${AUDIO.length} bytes`), answer.text);
  expect({ operation: 'audio', statuses: [429, 200], upstream_deployment: 'whisper' });
});

test('a refusal inside a 200, v1 responses', async () => {
  const asked = { model: ownDeployment('hidden-created'), input: 'Hidden', stream: true };
  const events = await collectItems(await v1Client().responses.create(asked));
  assert.equal(events.at(-1).type, 'response.completed');
  assert.equal(events.filter((event) => event.type === 'response.created').length, 1);
  expect({ operation: 'responses', backends: ['troubled', 'westus'], outcome: 'answered' });
});

test('every failure fails over without retries by the SDK', async () => {
  for (const failing of FAILING_MOODS) {
    const create = (more) => azureClient({ maxRetries: 2 }).chat.completions.create({ model: ownDeployment(failing), ...more });
    const answer = await create({ messages: userMessage('Once') });
    assert.equal(answer.choices[0].message.content, answerTo('Once'));
    expect({ status: 200, backends: [ownDeployment(failing), 'westus'], outcome: 'answered' });
  }
});

test('the SDK retries after the time in the response', async () => {
  await azureClient({ maxRetries: 2 }).chat.completions.create({ model: ownDeployment('again'), messages: userMessage('Again') });
  expect({ status: 429, statuses: [429] });
  expect({ status: 200, statuses: [200] });
});

/** Checks an error and expects its record. */
function check(error, status, code, fields) {
  assert.equal(error.status, status);
  assert.equal(error.code, code);
  assert.ok(error.requestID, 'expected a request id');
  expect({ request_id: error.headers.get('x-aoai-lb-request-id'), status, ...fields });
}

const chatCall = (client, model = 'gpt-4o', options = {}) => () =>
  client.chat.completions.create({ model, messages: userMessage('Hello'), ...options });

forEachFlavour('wrong key', async (client, api, makeClient) => {
  const error = await raises(OpenAI.AuthenticationError, chatCall(makeClient({ apiKey: 'wrong' })));
  check(error, 401, 'invalid_api_key', { client: null, api, outcome: 'refused', refusal: 'invalid_api_key' });
});

test('keys of two clients', async () => {
  const defaultHeaders = { 'Ocp-Apim-Subscription-Key': COLLEAGUE_KEY };
  const error = await raises(OpenAI.AuthenticationError, chatCall(azureClient({ defaultHeaders })));
  check(error, 401, 'invalid_api_key', { client: null });
});

forEachFlavour('deployment not allowed for this client', async (client, api, makeClient) => {
  const error = await raises(OpenAI.PermissionDeniedError, chatCall(makeClient({ apiKey: LIMITED_KEY })));
  const refused = { client: 'limited', deployment: 'gpt-4o', refusal: 'deployment_not_allowed' };
  check(error, 403, 'deployment_not_allowed', refused);
});

forEachFlavour('unknown deployment', async (client) => {
  const error = await raises(OpenAI.NotFoundError, chatCall(client, 'no-such-deployment'));
  const refused = { outcome: 'refused', deployment: 'no-such-deployment', statuses: [] };
  check(error, 404, 'DeploymentNotFound', refused);
});

test('all backends throttled', async () => {
  for (const [api, [, makeClient]] of Object.entries(FLAVOURS)) {
    const error = await raises(OpenAI.RateLimitError, chatCall(makeClient(), ownDeployment('throttled')));
    const wait = Number(error.headers.get('retry-after-ms'));
    assert.ok(wait > 20_000 && wait <= 30_000, `retry-after-ms: ${wait}`);
    assert.ok(Number(error.headers.get('retry-after')) <= 30);
    check(error, 429, error.code, { statuses: api === 'azure' ? [429] : [] });
  }
});

forEachFlavour('a bad request is relayed', async (client) => {
  const error = await raises(OpenAI.BadRequestError, chatCall(client, 'gpt-4o-mini', { messages: [] }));
  check(error, 400, error.code, { outcome: 'answered', statuses: [400] });
});

test('a resource that is down', async () => {
  const error = await raises(OpenAI.InternalServerError, chatCall(azureClient(), ownDeployment('down')));
  check(error, 503, error.code, { backends: Array(4).fill('troubled') });
});

test('a truncated stream is an error for the SDK', async () => {
  const seen = [];
  await raises(Error, async () => {
    for await (const chunk of await chatCall(v1Client(), ownDeployment('breaking'), { stream: true })()) seen.push(chunk);
  });
  assert.ok(seen.length, 'expected some chunks before the error');
  expect({ stream: true, status: 200, outcome: 'failed' });
});

test('a client that disconnects during a stream', async () => {
  const stream = await chatCall(azureClient(), ownDeployment('slow'), { stream: true })();
  for await (const chunk of stream) if (chunk.choices[0]?.delta.content) break;
  expect({ stream: true, outcome: 'client_gone' });
});

await runTests();
