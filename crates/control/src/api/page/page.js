// What a page does by itself; everything works without it but this.

// Shows what is new without a reload: what is live is fetched again and put in place, unless
// somebody is at work in it. Four seconds are soon enough for eyes.
const PAUSE = 4000;

function isInUse(part) {
  return part.contains(document.activeElement) || part.querySelector("details[open]") !== null;
}

async function refresh() {
  const parts = [...document.querySelectorAll("[data-live]")];
  if (parts.length === 0 || document.hidden) return;
  const response = await fetch(location.href, { headers: { accept: "text/html" } });
  // Signed out meanwhile: the sign-in page says more than an old list.
  if (response.redirected) return location.reload();
  if (!response.ok) return;
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const part of parts) {
    const next = fresh.getElementById(part.id);
    if (next === null || isInUse(part) || next.innerHTML === part.innerHTML) continue;
    part.replaceChildren(...document.adoptNode(next).childNodes);
  }
}

async function keepFresh() {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
    // The server may be away for a while.
    await refresh().catch(() => {});
  }
}

// A link may carry a login token behind its #, where no server sees it.
function fillToken() {
  const field = document.querySelector("input[name=token]");
  if (field === null || !location.hash.startsWith("#ginnel-")) return;
  field.value = location.hash.slice(1);
  history.replaceState(null, "", location.pathname);
}

// The key of an exported configuration is made here, and no server sees the private one. It waits
// in this tab until the page with the rest of the configuration is there.
const KEY = "ginnel-private-key";

function toBase64(bytes) {
  return btoa(String.fromCharCode(...new Uint8Array(bytes)));
}

async function makeKey(event) {
  const form = event.target.closest("form[data-makes-key]");
  if (form === null) return;
  event.preventDefault();
  const pair = await crypto.subtle.generateKey({ name: "X25519" }, true, ["deriveBits"]);
  // The key stands at the end of its PKCS #8 form (RFC 8410, 7).
  const secret = (await crypto.subtle.exportKey("pkcs8", pair.privateKey)).slice(-32);
  const open = toBase64(await crypto.subtle.exportKey("raw", pair.publicKey));
  sessionStorage.setItem(KEY, JSON.stringify({ open, secret: toBase64(secret) }));
  form.elements.public_key.value = open;
  form.submit();
}

async function showConfiguration() {
  const place = document.getElementById("configuration");
  const kept = JSON.parse(sessionStorage.getItem(KEY));
  sessionStorage.removeItem(KEY);
  if (place === null) return;
  let text = place.textContent;
  // A key of another export does not belong here.
  if (kept !== null && kept.open === place.dataset.publicKey) {
    text = text.replace(/^# PrivateKey = .*$/m, () => `PrivateKey = ${kept.secret}`);
  }
  place.textContent = text;
  if (!/^PrivateKey = /m.test(text)) return;
  const save = document.createElement("a");
  save.textContent = "Save it as a file";
  save.download = "ginnel.conf";
  save.href = URL.createObjectURL(new Blob([`${text}\n`], { type: "text/plain" }));
  document.getElementById("save").append(save);
  await draw(text);
}

// Draws a QR code with its quiet zone (ISO/IEC 18004, 6.3.8), dark on light in both schemes.
async function draw(text) {
  const { qrcode } = await import("/ui/qrcode.mjs");
  const code = qrcode(0, "L");
  code.addData(text, "Byte");
  code.make();
  const [count, quiet, scale] = [code.getModuleCount(), 4, 4];
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = (count + 2 * quiet) * scale;
  canvas.role = "img";
  canvas.ariaLabel = "The configuration as a QR code";
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#ffffff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = "#000000";
  for (let row = 0; row < count; row += 1) {
    for (let column = 0; column < count; column += 1) {
      if (!code.isDark(row, column)) continue;
      pen.fillRect((column + quiet) * scale, (row + quiet) * scale, scale, scale);
    }
  }
  document.getElementById("qr").append(canvas);
}

document.addEventListener("submit", makeKey);
fillToken();
showConfiguration();
keepFresh();
