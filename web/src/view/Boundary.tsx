// Error boundary: shows the plain text of what cannot be drawn, so that it takes neither the conversation nor the page with it.

import { Component, type ComponentChildren } from "preact";

interface Props {
  text: string;
  children: ComponentChildren;
}

interface State {
  /** Of the text that failed; another text, such as the next piece of an answer, is tried again. */
  failed: string | undefined;
}

export class Boundary extends Component<Props, State> {
  override state: State = { failed: undefined };

  override componentDidCatch(error: unknown) {
    console.error("an answer cannot be drawn", error instanceof Error ? error.name : error);
    this.setState({ failed: this.props.text });
  }

  override render({ text, children }: Props, { failed }: State) {
    return failed === text ? <p class="plain">{text}</p> : children;
  }
}
