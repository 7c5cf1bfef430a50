// An OpenID provider for the tests: oidc-provider with people who are in groups, over HTTPS.
//
//   node provider.mjs MODULES KEY CERTIFICATE URL_OF_THE_SERVER
//
// Prints its issuer. Then each line on stdin is a command, answered by one line: `disable NAME`,
// `enable NAME`, `groups NAME GROUP,GROUP`, `logout NAME`.

import { generateKeyPairSync, randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:https";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [modules, key, certificate, url] = process.argv.slice(2);
const entry = join(modules, "oidc-provider", "lib", "index.js");
const { default: Provider } = await import(pathToFileURL(entry));

const server = createServer({ key: readFileSync(key), cert: readFileSync(certificate) });
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const issuer = `https://localhost:${server.address().port}`;

const disabled = new Set();
const groups = new Map([["alice", ["dev"]]]);
const signing = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey;

const client = {
  client_secret: "a secret of the tests",
  response_types: ["code"],
  grant_types: [
    "authorization_code",
    "refresh_token",
    "urn:ietf:params:oauth:grant-type:device_code",
  ],
  backchannel_logout_uri: `${url}/v1/oidc/logout/default`,
  backchannel_logout_session_required: true,
};
// A server on the loopback cannot be a native client's by HTTPS, so the page is a client of its own.
const native = { application_type: "native", redirect_uris: ["http://127.0.0.1/callback"] };
const page = { application_type: "web", redirect_uris: [`${url}/ui/callback`] };

const provider = new Provider(issuer, {
  clients: [
    { ...client, ...native, client_id: "ginnel" },
    { ...client, ...page, client_id: "ginnel-page" },
  ],
  jwks: { keys: [{ ...signing.export({ format: "jwk" }), alg: "ES256", use: "sig", kid: "1" }] },
  clientDefaults: { id_token_signed_response_alg: "ES256" },
  enabledJWA: { idTokenSigningAlgValues: ["ES256"] },
  claims: { openid: ["sub"], profile: ["preferred_username", "groups"], email: ["email"] },
  cookies: { keys: [randomUUID()] },
  features: {
    devInteractions: { enabled: true },
    deviceFlow: { enabled: true },
    backchannelLogout: { enabled: true },
  },
  // Its own way refuses loopback addresses, which is where the server of the test is.
  fetch: (url, { dispatcher, ...options }) => fetch(url, options),
  findAccount(_, accountId) {
    if (disabled.has(accountId)) return undefined;
    return {
      accountId,
      claims: () => ({
        sub: accountId,
        preferred_username: accountId,
        email: `${accountId}@example.org`,
        groups: groups.get(accountId) ?? [],
      }),
    };
  },
});
provider.on("server_error", (_, error) => console.error(error));
server.on("request", provider.callback());
console.log(issuer);

// The sessions at the provider by name, for `logout`.
const sessions = new Map();
provider.on("authorization.success", (context) => {
  const session = context.oidc.session;
  if (session) sessions.set(session.accountId, session);
});

for await (const line of createInterface({ input: process.stdin })) {
  const [command, name, value] = line.split(" ");
  if (command === "disable") disabled.add(name);
  if (command === "enable") disabled.delete(name);
  if (command === "groups") groups.set(name, value ? value.split(",") : []);
  if (command === "logout") {
    const client = await provider.Client.find("ginnel");
    await client.backchannelLogout(name, sessions.get(name)?.sidFor("ginnel"));
  }
  console.log(`done ${line}`);
}
process.exit(0);
