// A separate module, so that the bundler puts temml into a chunk of its own.
import temml from "temml";
import "temml/dist/Temml-Local.css";

export const render = temml.render;
