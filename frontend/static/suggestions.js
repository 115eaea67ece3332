// "Try saying ...": the sentences that the checkpoint's folder brings; hidden where it brings none.

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
