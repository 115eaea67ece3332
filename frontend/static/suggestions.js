// "Try saying ...": sentences from the checkpoint's folder; hidden if the folder has none.

export async function showSuggestions(line) {
  const response = await fetch("suggestions");
  const sentences = response.ok ? await response.json() : [];
  if (!sentences.length) return;
  line.append("Try saying ");
  sentences.forEach((sentence, i) => {
    const quote = document.createElement("q");
    quote.textContent = sentence;
    line.append(i ? " " : "", quote);
  });
  line.hidden = false;
}
