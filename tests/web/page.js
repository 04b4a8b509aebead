// Uses the web page as people do, in a browser:
//
//   node page.js PROVIDER_PORT URL_OF_THE_FUNCTIONS URL_OF_AGENT_LOCAL URL_OF_ONE_WITH_TOKENS JWT_SECRET FOLDER_FOR_IMAGES
//
// As in checks.js, the provider goes on only after the page has shown what it said before.

import { Browser } from "./page/browser.js";
import { checkChat } from "./page/chat.js";
import { checkElsewhere } from "./page/elsewhere.js";
import { checkMemory } from "./page/memory.js";
import { checkTrouble } from "./page/trouble.js";
import { Provider } from "./provider.js";

const [providerPort, functions, url, guarded, secret, images] = process.argv.slice(2);
const only = process.env.ONLY ?? "";
const provider = new Provider();
await provider.listen(Number(providerPort));
const browser = await Browser.launch(images);
let failed = 0;

async function check(sentence, body) {
  if (!sentence.includes(only)) return;
  try {
    await body();
    console.log(`ok  ${sentence}`);
  } catch (error) {
    failed += 1;
    provider.hangUp();
    console.log(`FAIL  ${sentence}`);
    console.log(error);
    const pages = browser.chromium.contexts().flatMap((context) => context.pages());
    await pages.at(-1)?.screenshot({ path: `${images}/failed-${failed}.png` }).catch(() => undefined);
  }
  for (const context of browser.chromium.contexts()) await context.close();
}

const given = { check, browser, provider, url, functions, guarded, secret, hosts: [new URL(url).host] };
console.log("\nthe web page");
await checkChat(given);
await checkMemory(given);
await checkTrouble(given);
await checkElsewhere(given);
await browser.close();
provider.close();
process.exitCode = failed > 0 ? 1 : 0;
