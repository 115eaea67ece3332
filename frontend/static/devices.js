// Microphones and loudspeakers, and the messages for the user if there is none.

const WORDS = {
  NotAllowedError: "The browser may not use the microphone: allow it beside this page's address.",
  NotFoundError: "There is no microphone.",
  NotReadableError: "The microphone is in use by another program.",
  OverconstrainedError: "This microphone is not there any more: choose another in the settings.",
};

export async function openMicrophone(deviceId) {
  if (!navigator.mediaDevices) throw new Error("The browser gives a microphone only to https or to localhost.");
  const audio = { channelCount: 1, echoCancellation: true, noiseSuppression: false, autoGainControl: false };
  if (deviceId) audio.deviceId = { exact: deviceId };
  try {
    return await navigator.mediaDevices.getUserMedia({ audio });
  } catch (error) {
    throw new Error(WORDS[error.name] ?? `The microphone cannot be used: ${error.message}`);
  }
}

export const canChooseLoudspeaker = "setSinkId" in (globalThis.AudioContext?.prototype ?? {});

// `output`: an AudioContext, or an <audio> element.
export async function useLoudspeaker(output, deviceId) {
  if (!canChooseLoudspeaker || (!deviceId && !output.sinkId)) return;
  try {
    await output.setSinkId(deviceId);
  } catch {
    throw new Error("This loudspeaker is not there any more: choose another in the settings.");
  }
}

// Returns [{ id, label }] of "audioinput" or "audiooutput"; labels are empty until a microphone was permitted.
export async function devicesOf(kind) {
  const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  return devices
    .filter((device) => device.kind === kind && device.deviceId && device.label && device.deviceId !== "default")
    .map(({ deviceId, label }) => ({ id: deviceId, label }));
}
