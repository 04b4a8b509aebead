// Tests the web page in a browser:
//
//   node page.js PROVIDER_PORT FUNCTIONS_URL AGENT_LOCAL_URL AUTHENTICATED_URL JWT_SECRET IMAGE_FOLDER
//
// As in checks.js, the provider sends the next piece only after the page has shown the previous one. With ONLY=TEXT, only checks
// whose name contains TEXT run.

import { Browser } from "./page/browser.js";
import { checkChat } from "./page/chat.js";
import { checkDeployments } from "./page/deployments.js";
import { checkMemory } from "./page/memory.js";
import { checkFailures } from "./page/failures.js";
import { checkHostileAnswers } from "./page/hostile.js";
import { Provider } from "./provider.js";

const [providerPort, functions, url, guarded, secret, images] = process.argv.slice(2);
const only = process.env.ONLY ?? "";
const provider = new Provider();
await provider.listen(Number(providerPort));
const browser = await Browser.launch(images);
let failed = 0;

async function check(name, body) {
  if (!name.includes(only)) return;
  try {
    await body();
    console.log(`ok  ${name}`);
  } catch (error) {
    failed += 1;
    provider.reset();
    console.log(`FAIL  ${name}`);
    console.log(error);
    const pages = browser.chromium.contexts().flatMap((context) => context.pages());
    await pages.at(-1)?.screenshot({ path: `${images}/failed-${failed}.png` }).catch(() => undefined);
  }
  for (const open of browser.chromium.contexts()) await open.close();
}

const context = { check, browser, provider, url, functions, guarded, secret, hosts: [new URL(url).host] };
console.log("\nthe web page");
await checkChat(context);
await checkMemory(context);
await checkFailures(context);
await checkHostileAnswers(context);
await checkDeployments(context);
await browser.close();
provider.close();
process.exitCode = failed > 0 ? 1 : 0;
