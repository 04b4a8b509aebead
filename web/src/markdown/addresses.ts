// In place of the package `linkify-it`, of which the page needs one function: finds web addresses that are not marked as links.

const ADDRESS = /^https?:\/\/[^\s<>"'`，。；：！？、（）【】《》「」“”‘’]+/i;
/** Belongs to the sentence, not to the address. */
const END = /[.,;:!?*_~)\]]/;

export class LinkifyIt {
  matchAtStart(text: string): { url: string } | null {
    const url = ADDRESS.exec(text)?.[0];
    if (url === undefined) return null;
    let end = url.length;
    let unopened = count(url, ")") - count(url, "(");
    for (; end > 0 && END.test(url.charAt(end - 1)); end -= 1) {
      if (url.charAt(end - 1) !== ")") continue;
      if (unopened <= 0) break;
      unopened -= 1;
    }
    return /:\/\/./.test(url.slice(0, end)) ? { url: url.slice(0, end) } : null;
  }
}

const count = (text: string, character: string) => text.split(character).length - 1;
