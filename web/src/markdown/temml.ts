// In a file of its own, so that pages without a formula do not fetch it.
import temml from "temml";
import "temml/dist/Temml-Local.css";

export const render = temml.render;
