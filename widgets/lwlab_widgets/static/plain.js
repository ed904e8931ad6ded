// @ts-check
// The map by itself.
export default { render: heatMap };
