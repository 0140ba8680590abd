// The Node SDK on what was made on one resource: chains, tools, reasoning, background, files and containers.

import assert from 'node:assert/strict';
import OpenAI, { AzureOpenAI, BadRequestError, NotFoundError, toFile } from 'openai';

import { BALANCER_URL, KEY, expectTurns, raises, runTests, test } from './suite.mjs';

const TURNS = 20;
const CONTENT = Buffer.alloc(70_000, 'the lake of Constance is deep\n');
const client = new OpenAI({ baseURL: `${BALANCER_URL}/openai/v1/`, apiKey: KEY, maxRetries: 0 });
const azureClient = new AzureOpenAI({ endpoint: BALANCER_URL, apiKey: KEY, apiVersion: '2025-04-01-preview', maxRetries: 0 });
const TOOL = {
  type: 'function',
  name: 'look_up',
  strict: true,
  parameters: { type: 'object', properties: { word: { type: 'string' } }, required: ['word'], additionalProperties: false },
};

const create = (input, options = {}, by = client) => by.responses.create({ model: 'gpt-4o', input, ...options });

function assertTurn(response, number, beginning) {
  const expected = `(Turn ${number}; you began with: ${beginning})`;
  assert.ok(response.output_text.includes(expected), `${expected} is not in ${response.output_text}`);
}

async function collectItems(stream) {
  const all = [];
  for await (const item of stream) all.push(item);
  return all;
}

test('three chains of 20 turns, with requests of others between', async () => {
  const latest = [];
  for (let number = 0; number < 3; number++) latest.push(await create(`Conversation ${number}`));
  for (let turn = 2; turn <= TURNS; turn++) {
    for (let number = 0; number < 3; number++) {
      latest[number] = await create('Go on', { previous_response_id: latest[number].id }, turn % 2 ? client : azureClient);
      assertTurn(latest[number], turn, `Conversation ${number}`);
    }
    await create('Something else');
  }
  expectTurns({ new: 3 + TURNS - 1, learned: 3 * (TURNS - 1) });
});

test('forks, many at once and streamed', async () => {
  const root = await create('The root');
  const trunk = await create('The trunk', { previous_response_id: root.id });
  const branches = Array.from({ length: 8 }, async (_, number) => {
    const stream = client.responses.stream({ model: 'gpt-4o', input: `Branch ${number}`, previous_response_id: trunk.id });
    const branch = await stream.finalResponse();
    const twig = await create('What did I say?', { previous_response_id: branch.id });
    assert.ok(twig.output_text.startsWith(`You said: The root | The trunk | Branch ${number} (`), twig.output_text);
  });
  await Promise.all(branches);
  expectTurns({ new: 1, learned: 1 + 8 * 2 });
});

test('a loop of tools', async () => {
  let answer = await create('Please use the tool', { tools: [TOOL] });
  for (let number = 0; number < 5; number++) {
    const call = answer.output.at(-1);
    const output = { type: 'function_call_output', call_id: call.call_id, output: `sum ${number}` };
    const told = await create([output], { previous_response_id: answer.id, tools: [TOOL] });
    assert.ok(told.output_text.includes(`The tool said: sum ${number}`), told.output_text);
    answer = await create('Use the tool again', { previous_response_id: told.id, tools: [TOOL] });
    await create('Something else');
  }
  expectTurns({ new: 1 + 5, learned: 5 * 2 });
});

test('encrypted reasoning without anything stored', async () => {
  const options = { model: 'gpt-5', store: false, include: ['reasoning.encrypted_content'] };
  const conversations = [[], [], []];
  for (let turn = 0; turn < 6; turn++) {
    for (const [number, items] of conversations.entries()) {
      items.push({ role: 'user', content: `Thought ${turn} of ${number}` });
      items.push(...(await create(items, options)).output);
    }
  }
  for (const [number, items] of conversations.entries()) {
    const { output_text } = await create([...items, { role: 'user', content: 'What did you think?' }], options);
    const thoughts = Array.from({ length: 6 }, (_, turn) => `Thought ${turn} of ${number}`).join(' | ');
    assert.ok(output_text.includes(`I thought: ${thoughts}`), output_text);
  }
  expectTurns({ new: 3, learned: 3 * 6 });
});

test('background: cancelled, and a stream that is resumed', async () => {
  for (let number = 0; number < 3; number++) {
    const created = await create(`Background ${number}`, { background: true });
    assert.equal((await client.responses.cancel(created.id)).status, 'cancelled');
    assert.equal((await client.responses.retrieve(created.id)).status, 'cancelled');
    let seen;
    for await (const event of await create(`Resumed ${number}`, { background: true, stream: true })) {
      seen = seen ?? event;
      if (event.type === 'response.in_progress') break;
    }
    const rest = await collectItems(await client.responses.retrieve(seen.response.id, { stream: true, starting_after: 1 }));
    assert.equal(rest[0].sequence_number, 2);
    assert.equal(rest.at(-1).type, 'response.completed');
  }
  expectTurns({ new: 2 * 3, learned: 3 * 3 });
});

test('conversations', async () => {
  for (let number = 0; number < 3; number++) {
    const conversation = await client.conversations.create({});
    await create(`Talk ${number}`, { conversation: conversation.id });
    await create('Something else');
    assertTurn(await create('Go on', { conversation: { id: conversation.id } }), 2, `Talk ${number}`);
    assert.equal((await collectItems(client.conversations.items.list(conversation.id))).length, 4);
    await client.conversations.delete(conversation.id);
  }
  expectTurns({ default: 3, new: 3, learned: 3 * 4 });
});

test('files, batches and their output, vector stores', async () => {
  const file = await client.files.create({ file: await toFile(CONTENT, 'lake.txt'), purpose: 'assistants' });
  const store = await client.vectorStores.create({ file_ids: [file.id] });
  await create('Something else');
  const hits = await collectItems(client.vectorStores.search(store.id, { query: 'Constance' }));
  assert.ok(hits[0].content[0].text.includes('the lake of Constance'));
  const found = await create('Constance', { tools: [{ type: 'file_search', vector_store_ids: [store.id] }] });
  assert.ok(found.output_text.includes('I found in lake.txt'), found.output_text);
  const line = { custom_id: 'one', method: 'POST', url: '/v1/responses', body: { model: 'gpt-4o', input: 'Batch' } };
  const input = await client.files.create({ file: await toFile(Buffer.from(JSON.stringify(line)), 'input.jsonl'), purpose: 'batch' });
  let batch = await client.batches.create({ input_file_id: input.id, endpoint: '/v1/responses', completion_window: '24h' });
  let polls = 0;
  for (const deadline = Date.now() + 20_000; batch.status !== 'completed'; polls++) {
    assert.ok(Date.now() < deadline, batch.status);
    await new Promise((resume) => setTimeout(resume, 50));
    batch = await client.batches.retrieve(batch.id);
  }
  const output = await (await client.files.content(batch.output_file_id)).json();
  assert.equal(output.custom_id, 'one');
  expectTurns({ default: 2, new: 1, learned: 5 + polls });
});

test('containers and their files', async () => {
  for (let number = 0; number < 3; number++) {
    const first = await create(`Compute ${number}`, { tools: [{ type: 'code_interpreter', container: { type: 'auto' } }] });
    const { container_id: container, file_id: file } = first.output.at(-1).content[0].annotations[0];
    await create('Something else');
    const content = await client.containers.files.content.retrieve(file, { container_id: container });
    assert.equal(await content.text(), `Compute ${number}`);
    const added = await client.containers.files.create(container, { file: await toFile(CONTENT, 'lake.txt') });
    const back = await client.containers.files.content.retrieve(added.id, { container_id: container });
    assert.ok(CONTENT.equals(Buffer.from(await back.arrayBuffer())));
  }
  expectTurns({ new: 2 * 3, learned: 3 * 3 });
});

test('what nobody has', async () => {
  const error = await raises(NotFoundError, () => client.responses.retrieve('resp_missing'));
  assert.equal(error.status, 404);
  const refused = await raises(BadRequestError, () => create('Hello', { previous_response_id: 'resp_absent' }));
  assert.equal(refused.code, 'previous_response_not_found');
  // Their age is not known, so that they are asked for twice.
  expectTurns({ refused: 2, asked: 12 });
});

await runTests();
