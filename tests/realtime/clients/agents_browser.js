// @openai/agents-realtime in a browser: two turns, the second interrupts the answer to the first.
// Arguments: "websocket" or "webrtc", the two sentences as base64 of PCM16 at 24 kHz (with WebRTC, the microphone
// plays the sentences), and the callback that receives the result.
const [transport, order, change, done] = arguments;
const { RealtimeAgent, RealtimeSession, OpenAIRealtimeWebSocket, OpenAIRealtimeWebRTC } = OpenAIAgentsRealtime;
const CHUNK = 2400, CHUNK_MS = 50, MAX_MS = 110_000;

const events = [], errors = [];
let played = 0;
const waiting = [];
const next = (found) => new Promise((resolve) => waiting.push({ found, resolve, from: events.length }));
const look = () => waiting.forEach((one) => {
    const event = events.slice(one.from).find(one.found);
    if (event) one.resolve(event);
});
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function converse() {
    const agent = new RealtimeAgent({ name: 'barista', instructions: 'Be brief.' });
    const layer = transport === 'websocket'
        ? new OpenAIRealtimeWebSocket({ useInsecureApiKey: true })
        : new OpenAIRealtimeWebRTC({ useInsecureApiKey: true, baseUrl: `${location.origin}/v1/realtime/calls` });
    const session = new RealtimeSession(agent, { transport: layer, tracingDisabled: true });
    session.on('transport_event', (event) => { events.push(event); look(); });
    session.on('error', (error) => errors.push(JSON.stringify(error)));
    session.on('audio', (audio) => { played += audio.data.byteLength; });
    let interrupted = 0;
    session.on('audio_interrupted', () => { interrupted += 1; });
    const url = `${location.origin.replace('http', 'ws')}/v1/realtime?model=gpt-realtime`;
    await session.connect({ apiKey: 'none', ...(transport === 'websocket' ? { url } : {}) });

    const queue = [];
    const speak = (base64) => {
        const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
        for (let at = 0; at < bytes.length; at += CHUNK) queue.push(bytes.slice(at, at + CHUNK));
    };
    const microphone = transport === 'websocket' && setInterval(() => {
        session.sendAudio((queue.shift() ?? new Uint8Array(CHUNK)).buffer);
    }, CHUNK_MS);

    const isDone = (status) => (event) => event.type === 'response.done' && event.response.status === status;
    const started = transport === 'websocket' ? 'response.output_audio.delta' : 'output_audio_buffer.started';
    const sound = next((event) => event.type === started);
    const first = next(isDone('cancelled'));
    speak(order);
    await sound;
    await pause(1000);
    speak(change);
    const cancelled = (await first).response;
    const completed = (await next(isDone('completed'))).response;
    clearInterval(microphone);
    await pause(500);
    const history = session.history.map((item) => ({
        role: item.role, status: item.status, text: item.content.map((part) => part.transcript ?? part.text).join(''),
    }));
    session.close();
    return { cancelled, completed, history, played, interrupted, errors, kinds: kinds() };
}

const kinds = () => events.map((event) => event.type);
const late = pause(MAX_MS).then(() => { throw new Error(`expected a result within ${MAX_MS} ms`); });
Promise.race([converse(), late]).then(done, (error) => done({ failed: `${error} ${error.stack}`, errors, kinds: kinds() }));
